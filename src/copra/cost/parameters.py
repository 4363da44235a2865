"""Parameter counts and cache sizes, by formula from the sizes of a model."""

from copra.models.manifest import Manifest
from copra.schema.shape import ModelShape


def kv_cache_bytes_per_token(shape: ModelShape, bytes_per_value: int = 4) -> int:
    """Return the bytes that one token adds to the key/value cache of one sequence."""
    return sum(2 * layer.kv_heads * layer.head_dim * bytes_per_value for layer in shape.layers)


def answering_parameters(manifest: Manifest) -> int:
    """Return the number of weights that an answer needs: the model's and those of extra modules."""
    return manifest.parameters + _answering(manifest)


def answering_bytes(manifest: Manifest) -> int:
    """Return the bytes on disk of the weights that an answer needs.

    The bytes of all extra modules count in proportion to the weights of those that an answer needs.
    """
    modules = manifest.extra_modules
    if modules is None:
        return manifest.weights.bytes
    used, total = _answering(manifest), sum(modules.parameters.values())
    return manifest.weights.bytes + round(modules.bytes * used / total)


def _answering(manifest: Manifest) -> int:
    """Return the number of weights of the extra modules that an answer needs."""
    modules = manifest.extra_modules
    return sum(modules.parameters[name] for name in manifest.answering_modules) if modules else 0


def block_parameters(shape: ModelShape) -> list[dict[str, int]]:
    """Return the number of projection weights per layer, without biases and norms: {attention, ffn}.

    Llama 3.2 1B has 10,485,760 and 50,331,648 per layer.
    """
    return [
        {
            "attention": shape.hidden * layer.head_dim * 2 * (layer.query_heads + layer.kv_heads),
            "ffn": shape.ffn_matrices * shape.hidden * layer.ffn,
        }
        for layer in shape.layers
    ]


def matrix_parameters(shape: ModelShape) -> int:
    """Return the number of projection weights of all layers together, which pruning can remove."""
    return sum(sum(layer.values()) for layer in block_parameters(shape))
