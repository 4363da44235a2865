"""The figure of accuracy against FLOPs, with the Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from copra.report.comparisons import ALL
from copra.report.finding import finding
from copra.report.labels import Label, box_around, boxes_along, label_where_free
from copra.report.lines import Line, described, fillings, method_lines, panels
from copra.report.sizes import in_order
from copra.report.style import (
    FRONT,
    FRONT_WIDTH,
    MARKERS,
    Look,
    assign,
    chance_line,
    headline,
    legend_below,
    marker_handle,
    marker_size,
    method_looks,
    percent_axis,
    prefixed_ticks,
    ratio_ticks,
    settle,
    styled,
)

PLAIN = "Accuracy against FLOPs per answer"
"""The title if the table holds no finding."""


@styled
def pareto(table: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy (percent, 95% interval over questions) against FLOPs per answer.

    The table is that of `tables.accuracy_vs_flops`, and `methods` maps each method to its kind. A color and
    line style stand for a method, which a line joins over its cuts; a marker stands for what is left of the
    model, its filling for the place of the cut. Pruned layers and pruned width have panels of their own, with
    the dense models in both. FLOPs are relative to the reference, if there is one.
    The gray step line is the Pareto front of all recipes; light dots are single seeds. Lines are labeled
    where a label covers nothing, and otherwise listed below. The title is the finding of the table.
    """
    rows = described(table)
    relative = bool(table["reference"].any())
    rows = rows.assign(x=rows["flops_ratio" if relative else "flops"])
    looks = method_looks(methods)
    crowded: dict[str, str] = {}
    while True:
        listed = {method: looks[method] for method in crowded.values()}
        figure, drawn = _drawn(rows, looks, listed, relative)
        settle(figure)
        found = [_label(axes, lines, looks, crowded) for axes, lines in drawn]
        if not any(found):
            return figure
        crowded |= {label: method for each in found for label, method in each.items()}


def _drawn(
    rows: pandas.DataFrame, looks: Mapping[str, Look], listed: Mapping[str, Look], relative: bool
) -> tuple[Figure, list[tuple[Axes, list[Line]]]]:
    """Return the figure without labels of lines, and each panel's lines; the legend has `listed` methods."""
    whole = rows[rows["seed"] == ALL]
    parts = panels(whole)
    markers = assign(in_order(whole), MARKERS)
    fills = fillings(whole)
    figure = Figure(figsize=(2.4 + 3.9 * len(parts), 4.5), layout="constrained")
    headline(figure, finding(rows) or PLAIN)
    grid = figure.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
    drawn = []
    for axes, (title, part) in zip(grid, parts.items(), strict=True):
        lines = method_lines(part)
        for line in lines:
            _line(axes, line, looks[line.method], markers, fills)
            _seeds(axes, rows, line, looks[line.method].color)
        axes.set_title(title)
        drawn.append((axes, lines))
    _dress(grid, rows, relative)
    for axes in grid:
        _front(axes, whole[whole["pareto"]].sort_values(["x", "accuracy"]))
        chance_line(axes, rows["chance"])
    _legend(figure, _caption(rows), markers, fills, listed)
    return figure, drawn


def _line(axes: Axes, line: Line, look: Look, markers: Mapping[str, str], fills: Mapping[str, str]) -> None:
    path = line.path("x")
    axes.plot(
        path["x"], 100 * path["accuracy"], color=look.color, linestyle=look.dash, gid=f"line {line.label}"
    )
    for row in line.rows.itertuples():
        fill = fills[row.variant]
        axes.errorbar(
            [row.x],
            [100 * row.accuracy],
            yerr=[[max(0, 100 * (row.accuracy - row.low))], [max(0, 100 * (row.high - row.accuracy))]],
            color=look.color,
            ecolor=(look.color, 0.4),
            elinewidth=1.0,
            marker=markers[row.left],
            markersize=marker_size(markers[row.left]),
            fillstyle=fill,
            markerfacecoloralt="white",
            mec="white" if fill == "full" else look.color,
            mew=0.6 if fill == "full" else 1.2,
            label=row.recipe,
            zorder=3,
            clip_on=False,
        )


def _seeds(axes: Axes, rows: pandas.DataFrame, line: Line, color: str) -> None:
    """Draw the single seeds of a line's recipes."""
    seeds = rows[rows["recipe"].isin(line.rows["recipe"]) & (rows["seed"] != ALL)]
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3.4, "mew": 0, "alpha": 0.35}
    if len(seeds):  # constrained layout fails on unclipped lines without points
        axes.plot(
            seeds["x"], 100 * seeds["accuracy"], color=color, gid="seeds", clip_on=False, zorder=2.5, **look
        )


def _dress(grid: Sequence[Axes], rows: pandas.DataFrame, relative: bool) -> None:
    """Set up the axes, which all panels share."""
    axes = grid[0]
    if rows["x"].max() > 3 * rows["x"].min():
        axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.autoscale_view()
    axes.set_xlim(axes.get_xlim())
    if not relative:
        prefixed_ticks(axes)
    elif axes.get_xscale() == "log":
        ratio_ticks(axes)
    percent_axis(axes, [*(100 * rows[["accuracy", "low", "high", "chance"]]).to_numpy().ravel()])
    axes.set_ylabel("accuracy (%)")
    reference = rows.loc[rows["reference"], "order"].iloc[0] if relative else ""
    of = f" ({reference.partition(' > ')[2].replace(' > ', ' → ')} = 1)" if relative else ""
    for each in grid:
        each.set_xlabel(f"FLOPs per answer{of}")


def _front(axes: Axes, rows: pandas.DataFrame) -> None:
    """Draw the step line through the front.

    It extends to the right edge: with more FLOPs allowed, the best model is still available.
    """
    corners = list(zip(rows["x"], 100 * rows["accuracy"], strict=True))
    corners.append((axes.get_xlim()[1], corners[-1][1]))
    look: dict[str, Any] = {"drawstyle": "steps-post", "color": FRONT, "linewidth": FRONT_WIDTH, "zorder": 1}
    axes.plot(*zip(*corners, strict=True), gid="front", **look)


def _caption(rows: pandas.DataFrame) -> str:
    seeds = rows[rows["seed"] != ALL].groupby("recipe").size().max()
    number = f"{rows['n'].max():,} questions, "
    if seeds == seeds:
        number += f"{seeds} seeds: large markers are means, light dots single seeds"
    else:
        number += "one seed"
    return f"{number}; bars: 95% interval over questions"


def _legend(
    figure: Figure,
    caption: str,
    markers: Mapping[str, str],
    fills: Mapping[str, str],
    listed: Mapping[str, Look],
) -> None:
    """Explain markers, their fillings if there are several, the front, and lines without a label."""
    handles = [marker_handle(left, marker) for left, marker in markers.items()]
    handles += [marker_handle(variant, "o", fill) for variant, fill in fills.items() if variant]
    handles.append(Line2D([], [], color=FRONT, linewidth=FRONT_WIDTH, label="Pareto front of all recipes"))
    handles += [
        Line2D([], [], color=look.color, linestyle=look.dash, label=label) for label, look in listed.items()
    ]
    legend_below(figure, handles, caption)


def _label(
    axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look], crowded: Mapping[str, str]
) -> dict[str, str]:
    """Label the lines that are not `crowded`; return the methods of those without room, by label."""
    obstacles, labels = [text.get_window_extent() for text in axes.texts], []
    for line in lines:
        path = line.path("x")
        points = list(zip(path["x"], 100 * path["accuracy"], strict=True))
        obstacles += boxes_along(axes, points)
        for row in line.rows.itertuples():
            obstacles.append(box_around(axes.transData.transform((row.x, 100 * row.accuracy)), 6))
            obstacles += boxes_along(axes, [(row.x, 100 * row.low), (row.x, 100 * row.high)])
        if line.label not in crowded:
            ends = [points[-1], points[0], *points[1:-1]]
            labels.append(Label(line.label, ends, looks[line.method].color))
    unlabeled = {label.text for label in label_where_free(axes, labels, obstacles)}
    return {line.label: line.method for line in lines if line.label in unlabeled}
