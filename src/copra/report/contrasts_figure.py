"""The figure of contrasts: a forest plot, one line per contrast."""

import textwrap
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from copra.report.formats import ONE_SEED, p_value
from copra.report.style import DENSE, GRAY, styled

NAME_WIDTH = 30
"""Number of characters after which the name of a contrast is wrapped."""
LINE, GAP = 0.15, 0.3
"""Heights in inches of a line of text and of the space between two contrasts."""


@styled
def contrasts_figure(table: pandas.DataFrame) -> Figure:
    """Draw the table of `contrasts.contrasts`: mean and t interval of each contrast, and a dot per seed.

    The primary contrast has a diamond and a bold name. The numbers stand at the right.
    """
    whole = table[table["seed"] == "all"]
    names = ["\n".join(textwrap.wrap(name, NAME_WIDTH)) for name in whole["contrast"]]
    heights = [LINE * max(2, name.count("\n") + 1) + GAP for name in names]
    # One unit of the y axis is an inch, so that the lines of names never overlap.
    middles = [sum(heights[:index]) + height / 2 for index, height in enumerate(heights)]
    figure = Figure(figsize=(7.6, sum(heights) + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GRAY, linewidth=1.0, zorder=1, gid="zero")
    for y, row in zip(middles, whole.itertuples(), strict=True):
        seeds = table[(table["contrast"] == row.contrast) & (table["seed"] != "all")]
        _contrast(axes, y, row, 100 * seeds["value"])
    axes.set_yticks(middles, names)
    for label, primary in zip(axes.get_yticklabels(), whole["primary"], strict=True):
        label.set_fontweight("bold" if primary else "normal")
    axes.set_ylim(sum(heights), 0)
    axes.margins(x=0.06)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("contrast of accuracies (points)")
    _legend(figure, whole, several=(table["seed"] != "all").any())
    return figure


def _contrast(axes: Axes, y: float, row: Any, seeds: pandas.Series) -> None:
    """Draw one contrast at height `y`: mean and interval above, the seeds' values below."""
    value, low, high = 100 * row.value, 100 * row.t_low, 100 * row.t_high
    known = low == low
    axes.errorbar(
        [value],
        [y - 0.05],
        xerr=[[value - low], [high - value]] if known else None,
        color=DENSE,
        elinewidth=1.6,
        capsize=3,
        marker="D" if row.primary else "s",
        markersize=7.5 if row.primary else 5.5,
        zorder=3,
    )
    # Moved apart, so that equal seeds can be told from one.
    apart = [0.1 + 0.12 * (index + 0.5) / len(seeds) for index in range(len(seeds))]
    axes.plot(seeds, [y + each for each in apart], "o", color=GRAY, markersize=4, mfc="none", mew=1.1)
    interval = f" [{low:+.1f}, {high:+.1f}]" if known else f", {ONE_SEED}"
    p = f"\np {p_value(row.t_p)}" if known else ""
    if p and row.t_p_holm != row.t_p:
        p += f", Holm {p_value(row.t_p_holm)}"
    axes.text(
        1.02,
        y,
        f"{value:+.1f}{interval}{p}",
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=8,
        fontweight="bold" if row.primary else "normal",
    )


def _legend(figure: Figure, rows: pandas.DataFrame, *, several: bool) -> None:
    def point(marker: str, label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, label=label, **{"color": DENSE, **look})

    mean = "mean over seeds, 95% t interval" if several else "one seed"
    handles = []
    if not rows["primary"].all():
        handles.append(point("s", mean, markersize=5.5))
    if rows["primary"].any():
        handles.append(point("D", f"primary: {mean}", markersize=7.5))
    if several:
        handles.append(point("o", "each seed", color=GRAY, markersize=4, mfc="none"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
