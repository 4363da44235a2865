"""The memory of a training step, by formula from the sizes of the model."""

from copra.schema.shape import ModelShape


def training_bytes(
    shape: ModelShape,
    parameters: float,
    trained: float,
    tokens: float,
    logits: float,
    weight_bytes: int = 4,
    activation_bytes: int = 4,
) -> float:
    """Return the peak memory in bytes of a training step: weights, gradients, moments and activations.

    There are `parameters` weights. Of the `trained` ones there are a gradient and AdamW's two moments, all of
    `weight_bytes`. For the backward pass a layer keeps, per token of a micro-batch of `tokens` tokens,

        8 d              residual stream, norms and their inputs
        3 D (H + K)      queries, keys and values, before and after the rotary embedding, and their outputs
        (m + 1) I        the FFN's activations

    values of `activation_bytes`, with sizes as in `copra.cost.flops`; fused attention keeps no scores. At
    each of `logits` positions the LM head keeps three values of 4 bytes per token of the vocabulary: the
    logits, their log-probabilities and their gradient.
    """
    per_token = sum(
        8 * shape.hidden
        + 3 * layer.head_dim * (layer.query_heads + layer.kv_heads)
        + (shape.ffn_matrices + 1) * layer.ffn
        for layer in shape.layers
    )
    states = weight_bytes * (parameters + 3 * trained)
    return states + activation_bytes * tokens * per_token + 12 * logits * shape.vocabulary
