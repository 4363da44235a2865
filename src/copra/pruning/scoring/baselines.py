"""Scores that use no data: the baselines of every other metric."""

from random import Random

from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.schema.metrics import SCORED_AS
from copra.schema.shape import ModelShape
from copra.schema.units import UnitKind, units_of


def deepest(layers: int) -> list[ScoreRow]:
    """Return ranks that remove layers from deep to shallow, the last layer after all others.

    The simple strategy of Gromov et al. 2024 (arXiv 2403.17887, section 4.4): layer L-2 is removed first,
    layer 0 last but one, layer L-1 last of all.
    """
    ranks = [layers - 2 - layer for layer in range(layers - 1)] + [layers - 1]
    return [score_row("deepest", rank, "layer", layer) for layer, rank in enumerate(ranks)]


def random(shape: ModelShape, kind: UnitKind, seed: int) -> list[ScoreRow]:
    """Return a random order of all units of a kind, the same for the same shape, kind and seed."""
    unit, units = SCORED_AS[kind], units_of(kind, shape)
    ranks = list(range(len(units)))
    Random(f"{unit} {seed}").shuffle(ranks)
    return [
        score_row("random", rank, unit, layer, index)
        for (layer, index), rank in zip(units, ranks, strict=True)
    ]
