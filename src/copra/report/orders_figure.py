"""The figure of the orders in which metrics remove units."""

from pathlib import Path

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copra.report.orders import rank_correlation, ranks
from copra.report.style import note, styled, text_color_on
from copra.schema.curve import NamedCurve
from copra.schema.shape import ModelShape


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
            color = text_color_on(image, value)
            axes.text(x, y, text.format(value), ha="center", va="center", fontsize=7.5, color=color)
    axes.set_yticks(range(len(table)), table.index)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
