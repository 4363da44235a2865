"""The orders in which the metrics of a pruning curve remove units, and their rank correlations."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copra.pruning.moves import blocks, normalized
from copra.pruning.scoring.baselines import deepest
from copra.pruning.scoring.scores import score_table
from copra.report.style import note, styled
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


@styled
def orders_figure(named: NamedCurve, shape: ModelShape, scores: Path) -> Figure:
    """Draw the ranks at which each metric removes each layer, and the rank correlation of each two metrics.

    The left panel (ranks) exists only for curves of layers; correlations are over all units. Both are those
    of the first of the curve's models.
    """
    table = ranks(named.curve, shape, scores)
    if table.empty:
        figure = Figure(figsize=(4.0, 2.0), layout="constrained")
        note(figure.subplots(), "random orders have nothing to compare")
        return figure
    sizes = [len(table)] if named.curve.unit != "layers" else [table.shape[1], len(table)]
    widths = [max(3.2, 1.4 + 0.36 * sizes[0]), max(3.2, 1.4 + 0.5 * len(table))][-len(sizes) :]
    figure = Figure(figsize=(sum(widths), 1.4 + 0.36 * len(table)), layout="constrained")
    panels = figure.subplots(1, len(sizes), width_ratios=widths, squeeze=False)[0]
    if named.curve.unit == "layers":
        _matrix(panels[0], table, "{:.0f}", "cividis", (1, table.max(axis=None)))
        panels[0].set_xticks(range(table.shape[1]), [layer for layer, _ in table.columns])
        panels[0].set(xlabel="layer", title="Rank at which a layer goes (1: first)")
    _matrix(panels[-1], rank_correlation(table), "{:.2f}", "RdBu", (-1, 1))
    panels[-1].set_xticks(range(len(table)), table.index, rotation=45, ha="right", rotation_mode="anchor")
    panels[-1].set(title="Spearman's rank correlation")
    panels[0].set_title(f"{named.nodes[0]}\n{panels[0].get_title()}", parse_math=False)
    return figure


def _matrix(axes: Axes, table: pandas.DataFrame, text: str, colors: str, limits: tuple[float, float]) -> None:
    """Draw a matrix with its values written in the cells; missing ones are blank."""
    image = axes.imshow(table, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    for y, x in [(y, x) for y in range(table.shape[0]) for x in range(table.shape[1])]:
        value = table.iloc[y, x]
        if value == value:
            red, green, blue, _ = image.cmap(image.norm(value))
            color = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#222222"
            axes.text(x, y, text.format(value), ha="center", va="center", fontsize=7.5, color=color)
    axes.set_yticks(range(len(table)), table.index)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
