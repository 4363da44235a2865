"""Parameter counts and cache sizes, by formula from the sizes of a model (no torch)."""

from copra.models.shape import ModelShape


def kv_cache_bytes_per_token(shape: ModelShape, bytes_per_value: int = 4) -> int:
    """Bytes that one token adds to the key/value cache of one sequence."""
    return sum(2 * layer.kv_heads * layer.head_dim * bytes_per_value for layer in shape.layers)


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
