"""How much each layer changes the residual stream, and what that change does to the loss."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from copra.importance.record import Record, Sums, Tokens, gradient_scores, gradient_sums
from copra.importance.scores import ScoreRow, score_row


def layer_sums(record: Record, tokens: Tokens) -> Sums:
    """What a batch adds to the scores of the L layers, [L] each, and of the blocks, [L, L+1]."""
    before = tokens.values(record.states[0])
    directions = [_direction(tokens.last(before))]
    cosines, products = [], []
    for calls in record.states[1:]:
        after = tokens.values(calls)
        cosines.append(functional.cosine_similarity(before, after, dim=-1).sum(dtype=torch.float64))
        products.append(((after - before) * tokens.gradients(calls)).sum(-1))
        directions.append(_direction(tokens.last(after)))
        before = after
    return {
        "cosine": torch.stack(cosines).cpu(),
        "angular": _angles(torch.stack(directions)),
        **gradient_sums(torch.stack(products, dim=1), tokens),
    }


def layer_scores(sums: Sums, examples: int, tokens: int) -> dict[str, Tensor]:
    """Scores [L] by metric.

    `cosine`: 1 - E cos(x^l, x^{l+1}) over all tokens, the block influence of ShortGPT (arXiv 2403.03853,
    equation 1). `gradient`: the derivative of the loss for a mask on what the layer adds to the residual
    stream, (x^{l+1} - x^l) . dL/dx^{l+1}.
    """
    return {"cosine": 1 - sums["cosine"] / tokens, **gradient_scores(sums, examples)}


def block_rows(sums: Sums, examples: int) -> list[ScoreRow]:
    """Scores of all blocks of neighbouring layers.

    `angular`: E arccos(cos(x^l, x^{l+n})) / pi at the last token of each example, for every start l and
    length n (arXiv 2403.17887, section 3.2).
    """
    layers = len(sums["angular"])
    return [
        score_row("angular", sums["angular"][start, length] / examples, "block", start, length=length)
        for length in range(1, layers + 1)
        for start in range(layers + 1 - length)
    ]


def _direction(states: Tensor) -> Tensor:
    """Unit vectors, in float64 on the CPU: an angle near 0 has half the digits of its cosine."""
    return functional.normalize(states.cpu().double(), dim=-1)


def _angles(directions: Tensor) -> Tensor:
    """Sums over examples of angles in half turns between x^l and x^{l+n}, [L, L+1] by l and n, from unit
    vectors along x^0 to x^L, [L+1, B, d]."""
    layers = len(directions) - 1
    angles = torch.zeros(layers, layers + 1, dtype=torch.float64)
    for length in range(1, layers + 1):
        cosine = (directions[:-length] * directions[length:]).sum(-1).clamp(-1, 1)
        angles[: layers + 1 - length, length] = (cosine.arccos() / math.pi).sum(-1)
    return angles
