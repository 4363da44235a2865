"""The figure of accuracy against FLOPs, with the Pareto front."""

import itertools
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from copra.report.style import (
    COLORS,
    DENSE,
    FILLS,
    GRAY,
    MARKERS,
    assign,
    label_where_free,
    prefixed_ticks,
    settle,
    styled,
)


@styled
def pareto(table: pandas.DataFrame) -> Figure:
    """Draw accuracy (percent, 95% interval over questions) against FLOPs per answer.

    The table is that of `tables.accuracy_vs_flops`. One marker per method, one color per pruning, one filling
    per base; a step line shows the front, the best accuracy at or below each number of FLOPs. Rows of single
    seeds are left out. Points of the front, and then the others, are labeled where a label covers nothing.
    """
    rows = table[table["seed"] == "all"].reset_index(drop=True)
    colors = assign([name for name in rows["pruning"] if name != "dense"], COLORS) | {"dense": DENSE}
    markers, fills = assign(rows["method"], MARKERS), assign(rows["base"], FILLS)

    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.subplots()
    if rows["flops"].max() > 3 * rows["flops"].min():
        axes.set_xscale("log")
    for row in rows.itertuples():
        _point(axes, row, colors[row.pruning], markers[row.method], fills[row.base])
    axes.set(xlabel="FLOPs per answer", ylabel="accuracy (%), 95% interval over questions")
    prefixed_ticks(axes)
    axes.margins(x=0.12, y=0.08)
    axes.set_ylim(max(0, axes.get_ylim()[0]), min(100, axes.get_ylim()[1]) + 1)
    axes.set_xlim(axes.get_xlim())
    front = _front(axes, rows[rows["pareto"]].sort_values(["flops", "accuracy"]))
    reference = rows[rows["reference"]]
    axes.plot(
        reference["flops"],
        100 * reference["accuracy"],
        linestyle="",
        marker="o",
        markersize=14,
        mfc="none",
        mec=DENSE,
        mew=0.9,
        gid="reference",
    )
    _legend(figure, rows, colors, markers, fills)
    _labels(figure, axes, rows, front)
    return figure


def _point(axes: Axes, row: Any, color: str, marker: str, fill: str) -> None:
    interval = [[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]]
    axes.errorbar(
        [row.flops],
        [100 * row.accuracy],
        yerr=interval,
        color=color,
        ecolor=(color, 0.45),
        elinewidth=1.1,
        marker=marker,
        markersize=8,
        fillstyle=fill,
        markerfacecoloralt="white",
        mec="white" if fill == "full" else color,
        mew=0.7,
        label=row.recipe,
        zorder=3,
    )


def _front(axes: Axes, rows: pandas.DataFrame) -> list[tuple[float, float]]:
    """Draw the step line through the front; return its corners at the points and its end.

    The line extends to the right edge: with more FLOPs allowed, the best model is still available.
    """
    corners = list(zip(rows["flops"], 100 * rows["accuracy"], strict=True))
    corners.append((axes.get_xlim()[1], corners[-1][1]))
    axes.plot(
        *zip(*corners, strict=True), drawstyle="steps-post", color=GRAY, linewidth=1.2, zorder=2, gid="front"
    )
    return corners


def _legend(figure: Figure, rows: pandas.DataFrame, colors: dict, markers: dict, fills: dict) -> None:
    def head(text: str) -> Line2D:
        return Line2D([], [], linestyle="", label=text)

    def point(label: str, **look: Any) -> Line2D:
        return Line2D([], [], **{"linestyle": "", "markersize": 7, "color": GRAY, **look}, label=label)

    handles = [head("Method"), *(point(name, marker=marker) for name, marker in markers.items())]
    handles.append(head("Pruning"))
    # The dense model first, then the prunings in order of appearance.
    for name in sorted(dict.fromkeys(rows["pruning"]), key=lambda name: name != "dense"):
        handles.append(point(name, marker="o", color=colors[name]))
    if len(fills) > 1:
        handles.append(head("Base"))
        handles += [
            point(name, marker="o", fillstyle=fill, markerfacecoloralt="white")
            for name, fill in fills.items()
        ]
    handles.append(head(" "))
    handles.append(Line2D([], [], color=GRAY, linewidth=1.2, label="Pareto front"))
    if rows["reference"].any():
        handles.append(point("reference", marker="o", markersize=11, mfc="none", mec=DENSE))
    legend = figure.legend(handles=handles, loc="outside right upper", handlelength=1.6, labelspacing=0.45)
    for text in legend.get_texts():
        if text.get_text() in ("Method", "Pruning", "Base"):
            text.set_fontweight("bold")


def _labels(figure: Figure, axes: Axes, rows: pandas.DataFrame, front: list[tuple[float, float]]) -> None:
    """Label the points with their order of steps, those of the front and the reference first."""
    settle(figure)
    obstacles = []
    for row in rows.itertuples():
        around = 11 if row.reference else 8
        (x, y), (_, low), (_, high) = axes.transData.transform(
            [(row.flops, 100 * share) for share in (row.accuracy, row.low, row.high)]
        )
        obstacles.append(Bbox.from_extents(x - around, y - around, x + around, y + around))
        obstacles.append(Bbox.from_extents(x - 3, low, x + 3, high))
    for (x, y), (next_x, next_y) in itertools.pairwise(axes.transData.transform(front)):
        obstacles.append(Bbox.from_extents(x, y - 2, next_x, y + 2))
        obstacles.append(Bbox.from_extents(next_x - 2, y, next_x + 2, next_y))
    several = rows["base"].nunique() > 1
    ranked = rows.sort_values(["pareto", "reference", "accuracy"], ascending=False)
    names = [
        (f"{row.base}: " if several else "") + row.order.replace(" > ", " → ") for row in ranked.itertuples()
    ]
    points = list(zip(ranked["flops"], 100 * ranked["accuracy"], strict=True))
    label_where_free(axes, points, names, obstacles)
