"""How much each attention head matters. a_h is the output of head h before the output projection."""

import torch
from torch import Tensor, nn

from copra.pruning.scoring.record import Sums, Tokens, activation_sums, gradient_scores, gradient_sums
from copra.pruning.scoring.weights import in_by_out
from copra.schema.shape import LayerShape


def head_sums(
    outputs: Tensor, gradients: Tensor, tokens: Tokens, projection: nn.Module, sizes: LayerShape
) -> Sums:
    """What a batch adds to the scores of the H heads of a layer, [H] each.

    `outputs` are the heads' outputs side by side at the tokens, [M, H*D], and `gradients` those of the loss
    for them; `projection` is the output projection behind them.
    """
    heads = (sizes.query_heads, sizes.head_dim)
    by_head = outputs.unflatten(1, heads)
    products = (by_head * gradients.unflatten(1, heads)).sum(-1)
    matrices = in_by_out(projection, projection.weight).to(outputs.dtype).unflatten(0, heads)
    # Head by head: what all heads write together would fill [M, H, d].
    written = [(by_head[:, h] @ matrices[h]).norm(dim=-1).sum(dtype=torch.float64) for h in range(heads[0])]
    return {
        "activation": activation_sums(outputs, tokens).unflatten(0, heads).sum(-1),
        "contribution": torch.stack(written).cpu(),
        **gradient_sums(products, tokens),
    }


def head_scores(sums: Sums, examples: int, tokens: int) -> dict[str, Tensor]:
    """Scores [H] by metric.

    `gradient`: the derivative of the loss for a mask on the head, a_h . dL/da_h (Michel et al. 2019, arXiv
    1905.10650, section 4.1). `activation`: sqrt of the sum over examples and the head's channels of (mean
    over tokens of |a_h|)^2 (Minitron, arXiv 2407.14679, section 2.2). `contribution`: the mean over tokens
    of ||a_h W_O^h||, what the head writes to the residual stream.
    """
    return {
        **gradient_scores(sums, examples),
        "activation": sums["activation"].sqrt(),
        "contribution": sums["contribution"] / tokens,
    }
