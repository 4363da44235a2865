"""Importance scores of attention heads. a_h is the output of head h before the output projection."""

import torch
from torch import Tensor, nn

from copra.pruning.scoring.record import Sums, Tokens, activation_sums, gradient_scores, gradient_sums
from copra.pruning.scoring.weights import in_by_out
from copra.schema.shape import LayerShape


def head_sums(
    outputs: Tensor, gradients: Tensor, tokens: Tokens, projection: nn.Module, sizes: LayerShape
) -> Sums:
    """Return what a batch adds to the scores of the H heads of a layer, [H] each.

    `outputs` are the concatenated heads' outputs at the tokens, [M, H*D], `gradients` the gradients of the
    loss with respect to them, and `projection` is the output projection that reads them.
    """
    heads = (sizes.query_heads, sizes.head_dim)
    by_head = outputs.unflatten(1, heads)
    products = (by_head * gradients.unflatten(1, heads)).sum(-1)
    matrices = in_by_out(projection, projection.get_parameter("weight")).to(outputs.dtype).unflatten(0, heads)
    # Head by head: the projected outputs of all heads at once would take [M, H, d].
    written = [(by_head[:, h] @ matrices[h]).norm(dim=-1).sum(dtype=torch.float64) for h in range(heads[0])]
    return {
        "activation": activation_sums(outputs, tokens).unflatten(0, heads).sum(-1),
        "contribution": torch.stack(written).cpu(),
        **gradient_sums(products, tokens),
    }


def head_scores(sums: Sums, examples: int, tokens: int) -> dict[str, Tensor]:
    """Return scores [H] by metric.

    `gradient`: the derivative of the loss for a mask on the head, a_h . dL/da_h (Michel et al. 2019, arXiv
    1905.10650, section 4.1). `activation`: sqrt of the sum over examples and the head's channels of (mean
    over tokens of |a_h|)^2 (Minitron, arXiv 2407.14679, section 2.2). `contribution`: the mean over tokens
    of ||a_h W_O^h||, the norm of the head's output to the residual stream.
    """
    return {
        **gradient_scores(sums, examples),
        "activation": sums["activation"].sqrt(),
        "contribution": sums["contribution"] / tokens,
    }
