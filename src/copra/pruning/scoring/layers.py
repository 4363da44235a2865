"""Importance scores of layers and blocks: their change of the residual stream, and its effect on the loss."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from copra.pruning.scoring.record import Record, Sums, Tokens, gradient_scores, gradient_sums
from copra.pruning.scoring.scores import ScoreRow, score_row

CHUNK = 256
"""Number of vectors whose angles are computed at once: 17 states of width 2048 take 71 MB in float64."""


def layer_sums(record: Record, tokens: Tokens) -> Sums:
    """Return what a batch adds to the scores of the L layers, [L] each, and of the blocks, [L, L+1]."""
    states = [tokens.values(calls) for calls in record.states]
    cosines, products = [], []
    for (before, after), calls in zip(itertools.pairwise(states), record.states[1:], strict=True):
        cosines.append(functional.cosine_similarity(before, after, dim=-1).sum(dtype=torch.float64))
        products.append(((after - before) * tokens.gradients(calls)).sum(-1))
    return {
        "cosine": torch.stack(cosines).cpu(),
        "angular": _angles([x[tokens.predicting] for x in states]),
        "angular_mean": _angles(states),
        **gradient_sums(torch.stack(products, dim=1), tokens),
    }


def layer_scores(sums: Sums, examples: int, tokens: int) -> dict[str, Tensor]:
    """Return scores [L] by metric.

    `cosine`: 1 - E cos(x^l, x^{l+1}) over all tokens, the block influence of ShortGPT (arXiv 2403.03853,
    equation 1). `gradient`: the derivative of the loss for a mask on the layer's residual update,
    (x^{l+1} - x^l) . dL/dx^{l+1}.
    """
    return {"cosine": 1 - sums["cosine"] / tokens, **gradient_scores(sums, examples)}


def block_rows(sums: Sums, examples: int, tokens: int) -> list[ScoreRow]:
    """Return scores of all blocks of consecutive layers, for every start l and length n.

    The score is the mean of arccos(cos(x^l, x^{l+n})) / pi (arXiv 2403.17887, section 3.2). `angular`: at
    each example's last token whose next one is supervised. The paper takes the last token of a text; here
    that is the end token, which no answer reads. `angular_mean`: over all tokens.
    """
    layers = len(sums["angular"])
    return [
        score_row(metric, float(sums[metric][start, length] / number), "block", start, length=length)
        for metric, number in (("angular", examples), ("angular_mean", tokens))
        for length in range(1, layers + 1)
        for start in range(layers + 1 - length)
    ]


def _angles(states: Sequence[Tensor]) -> Tensor:
    """Return sums over M vectors of angles in half turns between x^l and x^{l+n}, [L, L+1] by l and n.

    `states` are x^0 to x^L, [M, d] each. Computed in float64, since an angle near 0 has half the digits of
    its cosine, and in chunks of `CHUNK` vectors.
    """
    layers = len(states) - 1
    between = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
    for parts in zip(*(x.split(CHUNK) for x in states), strict=True):
        directions = functional.normalize(torch.stack(parts, dim=1).cpu().double(), dim=-1)
        cosines = (directions @ directions.mT).clamp(-1, 1)
        between += (cosines.arccos() / math.pi).sum(0)
    angles = torch.zeros(layers, layers + 1, dtype=torch.float64)
    for start in range(layers):
        angles[start, 1 : layers + 1 - start] = between[start, start + 1 :]
    return angles
