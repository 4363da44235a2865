"""Figures of the scores that one pass over the calibration set gives: of layers and blocks, and of heads."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from copra.errors import CopraError
from copra.report.style import COLOURS, note, styled

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD_METRICS = ("gradient", "activation", "contribution", "taylor", "magnitude")
"""What is drawn of heads."""


@styled
def layer_distances(scores: "pandas.DataFrame") -> "Figure":
    """Angular distance of every block (length n, first layer l), and the cosine score of every layer.

    `scores` is a scores table; a frame marks the block with the least distance of each length, the one
    that is deleted (Gromov 2024, arXiv 2403.17887, section 3).

    Raises:
        CopraError: the table holds neither metric.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    blocks = scores[(scores["metric"] == "angular") & (scores["unit"] == "block")]
    layers = scores[(scores["metric"] == "cosine") & (scores["unit"] == "layer")].sort_values("layer")
    parts = [part for part, rows in (("blocks", blocks), ("layers", layers)) if len(rows)]
    if not parts:
        raise CopraError("The scores hold neither 'angular' of blocks nor 'cosine' of layers to draw.")
    figure = Figure(figsize=(4.9 * len(parts), 3.8), layout="constrained")
    panels = dict(zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True))
    if "blocks" in panels:
        axes = panels["blocks"]
        table = blocks.pivot(index="length", columns="layer", values="score")
        _heat_map(axes, table, "angular distance")
        for row, (_, distances) in enumerate(table.iterrows()):
            column = int(distances.reset_index(drop=True).idxmin())
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.6, clip_on=False)
            )
        axes.set(xlabel="first layer of the block, l", ylabel="layers in the block, n")
        axes.set_title("Distance across a block (framed: least of its length)")
    if "layers" in panels:
        axes = panels["layers"]
        axes.bar(layers["layer"], layers["score"], color=COLOURS[0], width=0.75)
        axes.grid(False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(layers["layer"].min() - 0.7, layers["layer"].max() + 0.7)
        axes.set(xlabel="layer", ylabel="1 - cosine of input and output", title="Influence of a layer")
    return figure


@styled
def head_importance(scores: "pandas.DataFrame", group_sizes: Sequence[int]) -> "Figure":
    """Layer x head importance, a panel a metric; lines part the KV groups.

    `group_sizes` holds for each layer the query heads that share a key/value head. Layers with fewer heads
    than the widest stay blank there; where the table scores no heads, the picture says so.
    """
    from matplotlib.figure import Figure

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


def _heat_map(axes: "Axes", table: "pandas.DataFrame", label: str) -> None:
    """Draw a table, its first row at the bottom; missing cells are blank."""
    image = axes.imshow(table, cmap="cividis", origin="lower", aspect="auto", interpolation="nearest")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for names, set_ticks in ((table.columns, axes.set_xticks), (table.index, axes.set_yticks)):
        every = math.ceil(len(names) / 12)
        set_ticks(range(0, len(names), every), [str(name) for name in names[::every]])
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    bar.formatter.set_powerlimits((-2, 4))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
