"""The orders in which the metrics of a pruning curve remove units, and their rank correlations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas

from copra.pruning.moves import blocks, normalized
from copra.pruning.scoring.baselines import deepest
from copra.pruning.scoring.scores import score_table
from copra.schema.curve import Curve, Line, NamedCurve
from copra.schema.metrics import OF_BLOCKS, SCORED_AS
from copra.schema.shape import ModelShape
from copra.utils.files import read_sealed_parquet


def ranks(curve: Curve, shape: ModelShape, scores: Path) -> pandas.DataFrame:
    """Return ranks of removal, 1 first: one row per line of the curve except random, one column per unit.

    A unit is (layer, index). `scores` is the folder of the model's scores. Protected layers are left out. For
    angular distances, whose blocks need not contain each other, the rank of a layer is the length of the
    shortest block that contains it, and layers of one block can share it. Layers that a greedy search did not
    reach are NaN.
    """
    found = {}
    for line in curve.lines():
        if line.metric != "random":
            table = read_sealed_parquet(scores / line.table) if line.table else None
            found[curve.name_of(line)] = _ranks(curve, line, shape, table)
    frame = pandas.DataFrame(found).T
    return frame[sorted(unit for unit in frame if unit[0] not in curve.protect)]


def _ranks(
    curve: Curve, line: Line, shape: ModelShape, scores: pandas.DataFrame | None
) -> dict[tuple[int, int], float]:
    settings = curve.step(line)
    if line.metric in OF_BLOCKS:
        layers = len(shape.layers)
        first = {(layer, layer): float(layers) for layer in range(layers)}
        for length, moves in sorted(blocks(settings, shape, scores).items(), reverse=True):
            first |= {(move.layer, move.layer): float(length) for move in moves}
        return first
    if line.metric == "deepest":
        scores = score_table(deepest(len(shape.layers)))
    assert scores is not None, "every other metric has a table"
    rows = scores[(scores["unit"] == SCORED_AS[curve.unit]) & (scores["metric"] == settings.scored_as)]
    units = zip(rows["layer"].astype(int), rows["index"].astype(int), strict=True)
    ranking = dict(zip(units, rows["score"], strict=True))
    if settings.normalize:
        ranking = normalized(ranking)
    ordered = sorted(ranking, key=lambda unit: (ranking[unit], unit))
    return {unit: float(rank) for rank, unit in enumerate(ordered, start=1)}


def drop_orders(
    ordered: list[NamedCurve], models: Mapping[str, ModelShape], scores: Path
) -> pandas.DataFrame:
    """Return one row per curve of layers, model and metric, with the layers in the order of their removal.

    Layers of equal rank, as in a block, are joined by "&"; those that a greedy search did not reach are
    missing.
    """
    rows = [
        {"curve": named.name, "recipe": named.curve.model, "node": node, **row}
        for named in ordered
        for node in named.nodes
        for row in _orders(named.curve, ranks(named.curve, models[node], scores / node))
    ]
    return pandas.DataFrame(rows, columns=["curve", "recipe", "node", "metric", "objective", "drops"])


def _orders(curve: Curve, table: pandas.DataFrame) -> Iterator[dict[str, Any]]:
    for line in curve.lines():
        if line.metric != "random":
            found = table.loc[curve.name_of(line)].dropna()
            drops = [" & ".join(str(layer) for layer, _ in group.index) for _, group in found.groupby(found)]
            yield {"metric": line.metric, "objective": line.objective, "drops": ", ".join(drops)}


def rank_correlation(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return Spearman's rank correlation of each two rows of `ranks`; units without a rank share the last."""
    last = table.T.fillna(table.max(axis=1) + 1)
    return last.corr(method="spearman")
