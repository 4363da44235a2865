"""Figures with one panel per method and one line per label of what is left of the model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from copra.report.sizes import in_order, left_labels, pruned_units
from copra.report.style import MARKERS, Look, assign, legend_below, marker_size, mixed
from copra.schema.units import UNIT_NAMES

MOST_COLUMNS = 4
DARKEST, LIGHTEST = -0.45, 0.5
"""Mixture with black of the color of the dense model, and with white of that of the smallest model."""


@dataclass(frozen=True)
class LeftLooks:
    """The markers and shades of the labels of what is left, which are the same in all panels."""

    labels: Sequence[str]

    def marker(self, label: str) -> str:
        """Return the marker of a label."""
        return assign(self.labels, MARKERS)[label]

    def shade(self, label: str, color: str) -> str:
        """Return the color of a method, the darker the more is left."""
        place = self.labels.index(label) / max(1, len(self.labels) - 1)
        return mixed(color, float(numpy.interp(place, (0, 1), (DARKEST, LIGHTEST))))

    def draw(
        self, axes: Axes, label: str, color: str, x: Sequence[float], points: pandas.DataFrame, **look: Any
    ) -> None:
        """Draw the line of a label at `x`: columns accuracy, low and high (shares), as percent."""
        y, low, high = (100 * points[name] for name in ("accuracy", "low", "high"))
        marker = self.marker(label)
        axes.errorbar(
            x,
            y,
            yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)],
            color=self.shade(label, color),
            marker=marker,
            markersize=marker_size(marker, 5),
            elinewidth=0.9,
            label=label,
            **look,
        )

    def handles(self) -> list[Line2D]:
        """Return the entries of the legend."""
        return [
            Line2D(
                [],
                [],
                color=self.shade(label, "#666666"),
                marker=self.marker(label),
                markersize=marker_size(self.marker(label), 5.5),
                label=label,
            )
            for label in self.labels
        ]


def with_labels(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return rows with columns `pruned`, `left` and `label`, from base, method, path and numbers of units.

    `path` is a model's name without its seeds and its last step. A label is what is left of the model, as a
    mean over seeds, whose cuts may differ; where a method has several paths with one such label, the path
    follows it.
    """
    sizes = list(UNIT_NAMES)
    rows = rows.assign(**rows.groupby("path")[sizes].transform("mean").round().astype("int64"))
    rows = rows.assign(pruned=pruned_units(rows), left=left_labels(rows))
    several = rows.groupby(["method", "left"])["path"].transform("nunique") > 1
    paths = rows["path"].str.split("+").str[1:].str.join(" → ")
    return rows.assign(label=rows["left"].where(~several, rows["left"] + " (" + paths + ")"))


def left_looks(rows: pandas.DataFrame, labels: str = "label") -> LeftLooks:
    """Return the looks of the labels in a column."""
    return LeftLooks(in_order(rows, labels))


def panel_grid(
    names: Sequence[str], looks: Mapping[str, Look], kinds: int = 1, height: float = 2.6
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with `kinds` panels one above the other for each name, and the panels of each name.

    Panels of one kind share their y axis, and all share the x axis. `looks` color the titles.
    """
    blocks = math.ceil(len(names) / MOST_COLUMNS)
    columns = math.ceil(len(names) / blocks)
    size = (1.0 + (3.6 if columns < 3 else 2.8) * columns, 0.5 + height * blocks * kinds)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(blocks * kinds, columns, squeeze=False, sharex=True)
    first = [grid[kind, 0] for kind in range(kinds)]
    panels = []
    for index in range(blocks * columns):
        block, column = divmod(index, columns)
        panel = [grid[block * kinds + kind, column] for kind in range(kinds)]
        for axes, shared in zip(panel, first, strict=True):
            if axes is not shared:
                axes.sharey(shared)
                axes.tick_params(labelleft=column == 0)
        if index < len(names):
            panel[0].set_title(names[index], color=title_color(names[index], looks), parse_math=False)
            panel[-1].tick_params(labelbottom=True)
            panels.append(panel)
        else:
            for axes in panel:
                axes.set_axis_off()
    return figure, panels


def title_color(name: str, looks: Mapping[str, Look]) -> str:
    """Return the color of a method's title, dark enough to be read."""
    return mixed(looks[name].color, -0.25) if name in looks else "#333333"


def explain(figure: Figure, looks: LeftLooks, more: Iterable[Line2D] = (), caption: str = "") -> None:
    """Draw the legend of the labels, followed by `more` entries."""
    legend_below(figure, [*looks.handles(), *more], caption)
