"""Scores that look at no data: the baselines of every other metric (no torch)."""

from random import Random
from typing import Literal

from copra.importance.scores import ScoreRow, score_row
from copra.models.shape import ModelShape


def deepest(layers: int) -> list[ScoreRow]:
    """Ranks that delete the layers before the last one, from deep to shallow, and keep the last one.

    The simple strategy of Gromov et al. 2024 (arXiv 2403.17887, section 4.4): layer L-2 goes first, layer
    0 last but one, layer L-1 last of all.
    """
    ranks = [layers - 2 - layer for layer in range(layers - 1)] + [layers - 1]
    return [score_row("deepest", rank, "layer", layer) for layer, rank in enumerate(ranks)]


def random(shape: ModelShape, unit: Literal["layer", "kv_group"], seed: int) -> list[ScoreRow]:
    """A random order of all units of a kind, the same for the same shape, kind and seed."""
    if unit == "layer":
        units = [(layer, layer) for layer in range(len(shape.layers))]
    else:
        units = [
            (layer, group) for layer, sizes in enumerate(shape.layers) for group in range(sizes.kv_heads)
        ]
    ranks = list(range(len(units)))
    Random(f"{unit} {seed}").shuffle(ranks)
    return [
        score_row("random", rank, unit, layer, index)
        for (layer, index), rank in zip(units, ranks, strict=True)
    ]
