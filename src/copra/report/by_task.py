"""The figure of accuracy on each task."""

import math
from collections.abc import Mapping
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copra.report.comparisons import ALL
from copra.report.style import method_looks, styled

MOST_COLUMNS = 4


@styled
def by_task_figure(table: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy (percent) on each task, one panel per task and one row per recipe.

    The table is that of `tables.accuracy_by_task`. A dot is the mean over seeds, with its 95% interval over
    questions; open dots are the seeds. Colors are those of the methods (`style.method_looks`); recipes are
    named beside their rows.
    """
    tasks, recipes = (list(dict.fromkeys(table[key])) for key in ("task", "recipe"))
    looks = method_looks(methods)
    columns = min(MOST_COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (2.0 + 1.9 * columns, rows * (0.9 + 0.24 * len(recipes)) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, task in zip(grid.flat, tasks, strict=False):
        for row in table[table["task"] == task].itertuples():
            _point(axes, row, recipes.index(row.recipe), looks[row.method].color)
        axes.set_title(task, fontsize=8.5)
        axes.margins(x=0.1)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -2), min(high, 102))
        axes.locator_params(axis="x", nbins=4)
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    names = [recipe.replace("+", " + ") for recipe in recipes]
    grid[0, 0].set_yticks(range(len(recipes)), names)
    grid[0, 0].set_ylim(len(recipes) - 0.5, -0.5)
    figure.supxlabel("accuracy (%), 95% interval over questions", fontsize=9)
    return figure


def _point(axes: Axes, row: Any, place: int, color: str) -> None:
    """Draw a row of the table: a recipe with its interval, or one of its seeds."""
    if row.seed != ALL:
        axes.plot(100 * row.accuracy, place, "o", markersize=5, mfc="none", mec=(color, 0.45), zorder=2)
        return
    axes.errorbar(
        [100 * row.accuracy],
        [place],
        xerr=[[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]],
        color=color,
        marker="o",
        markersize=5,
        elinewidth=1.1,
        zorder=3,
    )
