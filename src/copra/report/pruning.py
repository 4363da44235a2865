"""The figure of a pruning curve: accuracy and loss against removed units, one line per metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from copra.report.labels import apart
from copra.report.style import DENSE, GRAY, assign, percent_axis, styled
from copra.schema.units import UNIT_NAMES

# A metric has the same color and marker in every figure; its loss and accuracy variants share a hue.
LOOKS = {
    "cosine": ("#0072B2", "o"),
    "angular": ("#56B4E9", "s"),
    "angular_mean": ("#332288", "h"),
    "deepest": ("#8C564B", "D"),
    "gradient": ("#E69F00", "X"),
    "taylor": ("#D55E00", "^"),
    "magnitude": ("#CC79A7", "v"),
    "loss": ("#4DB892", "P"),
    "greedy_loss": ("#00664B", "p"),
    "accuracy": ("#A78BD0", "<"),
    "greedy_accuracy": ("#5B3A93", ">"),
    "activation": ("#0072B2", "o"),
    "contribution": ("#56B4E9", "s"),
    "gates": ("#8C564B", "D"),
    "random": (GRAY, "."),
}
STYLES = ("-", "--", ":", "-.")
LOSSES = {
    "cot": "loss on steps and answer",
    "latent": "loss on the answer",
    "answer": "loss on the answer, steps given",
}


@dataclass(frozen=True, eq=False)
class _Line:
    """A line of the figure: its rows of the table, and its style."""

    name: str
    rows: pandas.DataFrame
    color: str
    marker: str
    style: str
    size: float
    """Size of the markers in points. Each line is thinner, with smaller markers, than those before it, so
    that lines with the same values remain visible."""

    @property
    def width(self) -> float:
        return self.size / 3.5


@styled
def pruning_figure(table: pandas.DataFrame) -> Figure:
    """Draw accuracy and loss against the number of removed units, from the rows of one curve.

    One color and marker per metric, one line style per objective; random orders are drawn as a band from
    worst to best with their mean. Several seeds of a model are averaged. The dashed line is the whole model,
    on the gray of its 95% interval. Names are written where the lines end. Points are not shifted, however
    near to each other.
    """
    table = table.assign(**{name: 100 * table[name] for name in ("accuracy", "low", "high")})
    lines = _lines(table)
    columns = [name for name in ("accuracy", "loss") if table[name].notna().any()]
    figure = Figure(figsize=(1.9 + 3.4 * len(columns), 3.9), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        _dress(axes, table, column)
        for line in lines:
            _draw(axes, line, column)
    _name(panels[-1], lines, columns[-1])
    return figure


def _lines(table: pandas.DataFrame) -> list[_Line]:
    objectives = list(table["objective"].dropna().unique())
    styles = assign(objectives, STYLES)
    groups = table.groupby(["metric", "objective"], sort=False, dropna=False)
    found = []
    for index, ((metric, objective), rows) in enumerate(groups):
        name = metric
        if metric == "random":
            name = f"random, {rows['random_seed'].nunique()} orders"
        elif len(objectives) > 1 and objective in styles:
            name = f"{metric} ({objective})"
        size = 7.5 - 3.5 * index / max(1, len(groups) - 1)
        found.append(_Line(name, rows, *LOOKS[metric], styles.get(objective, "-"), size))
    return found


def _dress(axes: Axes, table: pandas.DataFrame, column: str) -> None:
    """Set up the axes, and draw the level of the whole model."""
    whole = table[table["removed"] == 0]
    if column == "accuracy":
        percent_axis(axes, [*table["accuracy"], *whole["low"], *whole["high"]])
        axes.axhspan(whole["low"].mean(), whole["high"].mean(), color="#EEEEEE", zorder=0.5)
    elif table["loss"].max() > 20 * table["loss"].min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    level = whole[column].mean()
    axes.axhline(level, color=DENSE, linewidth=1, linestyle=(0, (6, 3)), gid="whole")
    axes.annotate(
        "whole model",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 3 if column == "accuracy" else -3),
        textcoords="offset points",
        ha="right",
        va="bottom" if column == "accuracy" else "top",
        fontsize=7.5,
        color=DENSE,
    )
    unit, total = table["unit"].iloc[0], whole["left"].iloc[0]
    axes.set_xlabel(f"{UNIT_NAMES[unit]} {'dropped' if unit == 'layers' else 'removed'} (of {total})")
    axes.set_ylabel("accuracy (%)" if column == "accuracy" else LOSSES[table["loss_on"].iloc[0]])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw(axes: Axes, line: _Line, column: str) -> None:
    points = line.rows.groupby("removed")[column]
    mean = points.mean()
    if line.rows["random_seed"].notna().any():
        axes.fill_between(mean.index, points.min(), points.max(), color=line.color, alpha=0.22, linewidth=0)
    axes.plot(
        mean.index,
        mean,
        color=line.color,
        linestyle=line.style,
        linewidth=line.width,
        marker=line.marker,
        markersize=line.size,
        mec="white",
        mew=0.5,
        label=line.name,
    )


def _name(axes: Axes, lines: Sequence[_Line], column: str) -> None:
    """Write the name of each line to the right of the axes, joined to the end of the line."""
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    place = axes.transScale + axes.transLimits
    ends = [line.rows.groupby("removed")[column].mean() for line in lines]
    starts = [place.transform((end.index[-1], end.iloc[-1])) for end in ends]
    heights = apart([y for _, y in starts], 0.052)
    for line, start, height in zip(lines, starts, heights, strict=True):
        look: dict[str, Any] = {"color": line.color, "transform": axes.transAxes, "clip_on": False}
        axes.plot([start[0], 1.04], [start[1], height], linewidth=0.6, alpha=0.6, gid="leader", **look)
        axes.plot([1.07], [height], marker=line.marker, markersize=5.5, linestyle="", gid="leader", **look)
        axes.text(1.10, height, line.name, transform=axes.transAxes, va="center", fontsize=8)
