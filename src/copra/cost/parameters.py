"""Parameter counts and cache sizes, by formula from the sizes of a model."""

from collections.abc import Mapping
from typing import Any

from copra.data.sequences import GenerationSpec
from copra.schema.shape import ModelShape


def kv_cache_bytes_per_token(shape: ModelShape, bytes_per_value: int = 4) -> int:
    """Bytes that one token adds to the key/value cache of one sequence."""
    return sum(2 * layer.kv_heads * layer.head_dim * bytes_per_value for layer in shape.layers)


def answering_parameters(manifest: Mapping[str, Any]) -> int:
    """Weights that an answer needs: the language model's, and those of the parts that its decoding names."""
    parts = (manifest.get("parts") or {}).get("parameters", {})
    return manifest["parameters"] + sum(parts[name] for name in _answering(manifest))


def answering_bytes(manifest: Mapping[str, Any]) -> int:
    """Bytes of those weights on the disk; parts that only training needs are left out in proportion."""
    parts = manifest.get("parts")
    if not parts:
        return manifest["weights"]["bytes"]
    used = sum(parts["parameters"][name] for name in _answering(manifest))
    return manifest["weights"]["bytes"] + round(parts["bytes"] * used / sum(parts["parameters"].values()))


def _answering(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return GenerationSpec.from_json(manifest["decoding"]).parts


def block_parameters(shape: ModelShape) -> list[dict[str, int]]:
    """Weights of the projections of each layer, without biases and norms: {attention, ffn}.

    Llama 3.2 1B has 10,485,760 and 50,331,648 a layer.
    """
    return [
        {
            "attention": shape.hidden * layer.head_dim * 2 * (layer.query_heads + layer.kv_heads),
            "ffn": shape.ffn_matrices * shape.hidden * layer.ffn,
        }
        for layer in shape.layers
    ]


def matrix_parameters(shape: ModelShape) -> int:
    """Weights of the projections of all layers together: what pruning can take away."""
    return sum(sum(layer.values()) for layer in block_parameters(shape))
