"""Figures of latents: accuracy against their number, and against the layers left too."""

import math
from collections.abc import Mapping
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from copra.report.by_method import LeftLooks, explain, left_looks, panel_grid, title_color
from copra.report.lines import Line, described, method_lines
from copra.report.style import (
    GRAY,
    Look,
    chance_line,
    method_looks,
    percent_axis,
    styled,
    text_color_on,
)
from copra.utils.errors import CopraError

COLORS_OF_CELLS = "cividis"
"""A color map whose lightness rises evenly, so that it can be read in gray."""
LEAST_RANGE = 10.0
"""Fewest points between the ends of the color scale: chance must not look like a difference."""


@styled
def latents_figure(table: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy with its interval against the number of latents, one panel per line of the table.

    A panel is a method, or a method with one place of the cut. The table is that of
    `latent_tables.accuracy_vs_latents`, and `methods` maps each method to its kind. A line is what is left of
    the model; a ring marks the number of latents in training.
    """
    rows = described(table)
    lines = method_lines(rows)
    looks, left = _looks(lines, methods), left_looks(rows, "left")
    figure, panels = panel_grid([line.label for line in lines], looks, height=3.4)
    for line, (axes,) in zip(lines, panels, strict=True):
        for place, (label, points) in enumerate(line.rows.groupby("left", sort=False)):
            _sweep(axes, points.sort_values("latents"), left, str(label), looks[line.label].color, place)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("latents at evaluation")
        percent_axis(axes, (100 * rows[["accuracy", "low", "high", "chance"]]).to_numpy().ravel())
        chance_line(axes, rows["chance"])
    panels[0][0].set_ylabel("accuracy (%), 95% interval over questions")
    ring = Line2D([], [], linestyle="", marker="o", markersize=10, mfc="none", mec=GRAY, label="as trained")
    explain(figure, left, [ring])
    return figure


def _looks(lines: list[Line], methods: Mapping[str, str]) -> dict[str, Look]:
    looks = method_looks(methods)
    return {line.label: looks[line.method] for line in lines}


def _sweep(axes: Axes, rows: pandas.DataFrame, left: LeftLooks, label: str, color: str, place: int) -> None:
    """Draw one line of a panel, shifted a little, so that intervals at the same number do not overlap."""
    points = rows.groupby("latents")[["accuracy", "low", "high", "trained"]].mean()
    x = points.index + 0.24 * ((place + 0.5) / len(left.labels) - 0.5)
    left.draw(axes, label, color, x, points, clip_on=False)
    here = points["trained"].to_numpy() > 0
    ring: dict[str, Any] = {"markersize": 11, "mfc": "none", "mec": left.shade(label, color), "mew": 1.2}
    axes.plot(x[here], 100 * points["accuracy"][here], "o", gid="trained", clip_on=False, **ring)


@styled
def layers_and_latents(table: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy (percent) by layers left and latents used, one panel per method and place of the cut.

    The table is that of `latent_tables.accuracy_vs_latents`. Models with pruned width are left out. A frame
    marks the number of latents in training.

    Raises:
        CopraError: no method was evaluated with two different numbers of layers.
    """
    rows = described(table)
    rows = rows[rows["pruned"].isin(("", "layers"))]
    lines = [line for line in method_lines(rows) if line.rows["layers"].nunique() > 1]
    if not lines:
        raise CopraError("layers_and_latents: no method was evaluated with different numbers of layers.")
    looks = _looks(lines, methods)
    shown = pandas.concat([line.rows for line in lines])
    columns = min(3, len(lines))
    number = math.ceil(len(lines) / columns)
    size = 0.52 * max(4, shown["latents"].nunique()) + 0.9
    high = 0.42 * shown["layers"].nunique() + 1.1
    figure = Figure(figsize=(1.4 + size * columns, 0.4 + high * number), layout="constrained")
    grid = figure.subplots(number, columns, squeeze=False)
    low, high = 100 * shown["accuracy"].min(), 100 * shown["accuracy"].max()
    limits = (low, max(high, low + LEAST_RANGE))
    for line, axes in zip(lines, grid.flat, strict=False):
        image = _cells(axes, line.rows, limits)
        axes.set_title(line.label, color=title_color(line.label, looks), parse_math=False)
    for axes in grid.flat[len(lines) :]:
        axes.set_axis_off()
    bar = figure.colorbar(image, ax=grid, label="accuracy (%)", shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    figure.supxlabel("latents at evaluation (framed: as trained)", fontsize=9)
    figure.supylabel("layers left", fontsize=9)
    return figure


def _cells(axes: Axes, rows: pandas.DataFrame, limits: tuple[float, float]) -> AxesImage:
    """Draw the cells of one panel, the most layers at the top, and return the image."""
    cells = 100 * rows.pivot_table(index="layers", columns="latents", values="accuracy").sort_index(
        ascending=False
    )
    image = axes.imshow(cells, cmap=COLORS_OF_CELLS, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (y, layers), (x, latents) in (
        (y, x) for y in enumerate(cells.index) for x in enumerate(cells.columns)
    ):
        value = cells.loc[layers, latents]
        if value == value:
            color = text_color_on(image, value)
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
        trained = rows.loc[(rows["layers"] == layers) & (rows["latents"] == latents), "trained"]
        if trained.any():
            axes.add_patch(
                Rectangle((x - 0.44, y - 0.42), 0.88, 0.84, fill=False, ec="#D55E00", lw=1.8, gid="trained")
            )
    axes.set_xticks(range(len(cells.columns)), [str(number) for number in cells.columns])
    axes.set_yticks(range(len(cells)), [str(number) for number in cells.index])
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image
