"""Figures of the scores from one pass over the calibration set: of layers and blocks, and of heads."""

import math
from collections.abc import Sequence
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from copra.report.style import COLORS, note, styled
from copra.schema.metrics import OF_BLOCKS
from copra.utils.errors import CopraError

HEAD_METRICS = ("gradient", "activation", "contribution", "taylor", "magnitude")
"""The metrics drawn for heads."""


@styled
def layer_distances(scores: pandas.DataFrame) -> Figure:
    """Draw angular distances of every block (length n, first layer l) and the cosine score of every layer.

    `scores` is a scores table. Blocks are colored by their rank among those of their length, since distances
    grow with length, and those of blocks with the first layer are many times larger than the rest. A frame
    marks the block with the least distance, which is the one to remove (Gromov 2024, arXiv 2403.17887,
    section 3); the distance is written beside the row. Scores of layers have a log axis, because that of the
    first layer is far larger.

    Raises:
        CopraError: the table holds none of these metrics.
    """
    layers = scores[(scores["metric"] == "cosine") & (scores["unit"] == "layer")].sort_values("layer")
    metrics = [name for name in OF_BLOCKS if (scores["metric"] == name).any()]
    number = len(metrics) + bool(len(layers))
    if not number:
        raise CopraError(
            f"The scores hold neither {' nor '.join(OF_BLOCKS)} of blocks nor 'cosine' of layers to draw."
        )
    figure = Figure(figsize=(4.9 * number, 3.8), layout="constrained")
    panels = list(figure.subplots(1, number, squeeze=False)[0])
    for metric, axes in zip(metrics, panels, strict=False):
        _distances(axes, scores[(scores["metric"] == metric) & (scores["unit"] == "block")], metric)
    if len(layers):
        _influence(panels[-1], layers)
    return figure


def _distances(axes: Axes, blocks: pandas.DataFrame, metric: str) -> None:
    """Draw the distances of all blocks by length and first layer."""
    table = blocks.pivot(index="length", columns="layer", values="score")
    ranks = table.rank(axis=1, method="min").sub(1).div((table.count(axis=1) - 1).clip(lower=1), axis=0)
    _heat_map(axes, ranks, "rank in the row (0: least distance)")
    look: dict[str, Any] = {"fill": False, "ec": COLORS[1], "lw": 1.6, "clip_on": False}
    every = math.ceil(len(table) / 16)
    for row, (_, distances) in enumerate(table.iterrows()):
        column = table.columns.get_loc(distances.idxmin())
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
        if row % every == 0:
            last = int(distances.count()) - 0.3
            axes.text(last, row, f"{distances.min():.3f}", va="center", fontsize=6, color=COLORS[1])
    axes.set(xlabel="first layer of the block, l", ylabel="layers in the block, n")
    axes.set_title(f"{metric}: distances across blocks (framed: least)")


def _influence(axes: Axes, layers: pandas.DataFrame) -> None:
    """Draw the cosine scores of layers."""
    axes.plot(layers["layer"], layers["score"], "o-", color=COLORS[0], linewidth=0.8, markersize=4)
    if layers["score"].min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="1 - cosine of input and output", title="cosine: influence of a layer")


@styled
def head_importance(scores: pandas.DataFrame, group_sizes: Sequence[int]) -> Figure:
    """Draw layer x head importance, one panel per metric; lines separate the KV groups.

    `group_sizes` holds, per layer, the number of query heads that share a key/value head. Cells beyond a
    layer's heads are blank. If the table scores no heads, the figure shows a note.
    """
    heads = scores[scores["unit"] == "head"]
    metrics = [name for name in HEAD_METRICS if (heads["metric"] == name).any()]
    columns = max(1, min(3, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(metrics) :]:
        axes.set_axis_off()
    if not metrics:
        note(grid[0, 0], "the scores of this model say nothing about heads")
    for axes, metric in zip(grid.flat, metrics, strict=False):
        table = heads[heads["metric"] == metric].pivot(index="layer", columns="index", values="score")
        _heat_map(axes, table, "score")
        for row, layer in enumerate(table.index):
            size, widest = group_sizes[layer], int(table.loc[layer].count())
            parted = range(size, widest, size) if size > 1 else ()
            axes.vlines([head - 0.5 for head in parted], row - 0.5, row + 0.5, color="white", linewidth=1.4)
        axes.set(xlabel="head", ylabel="layer", title=metric)
    return figure


def _heat_map(axes: Axes, table: pandas.DataFrame, label: str) -> None:
    """Draw a table as a heat map, its first row at the bottom; missing cells are blank."""
    image = axes.imshow(table, cmap="cividis", origin="lower", aspect="auto", interpolation="nearest")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for names, set_ticks in ((table.columns, axes.set_xticks), (table.index, axes.set_yticks)):
        every = math.ceil(len(names) / 12)
        set_ticks(range(0, len(names), every), [str(name) for name in names[::every]])
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    assert isinstance(bar.formatter, ScalarFormatter)  # the default
    bar.formatter.set_powerlimits((-2, 4))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
