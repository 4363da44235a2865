"""The figure of accuracy after fine-tuning against model size, for pruned and quantized models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from copra.report.comparisons import ALL
from copra.report.lines import described, fillings
from copra.report.sizes import DENSE
from copra.report.style import (
    MARKERS,
    Look,
    assign,
    chance_line,
    legend_below,
    marker_handle,
    marker_size,
    method_looks,
    note,
    percent_axis,
    prefixed_ticks,
    styled,
)
from copra.schema.units import UNIT_NAMES

PANELS = {
    "layers": "layers left",
    "kv_groups": "KV groups left, all layers together",
    "flops": "FLOPs per answer",
    "attention_flops": "attention FLOPs per answer",
    "kv_cache_bytes_per_token": "KV cache per token (bytes)",
    "checkpoint_bytes": "checkpoint (bytes)",
    "seconds_batch_1": "latency at batch 1 ({unit})",
}
"""The x axes by column. Axes that count units show only models with pruned units of that kind."""

CHANGED_BY_QUANTIZING = ("checkpoint_bytes", "seconds_batch_1")
"""The x axes that show quantized models; on the others these have the same x as their parents."""
SAME = 0.03
"""Largest difference, as a fraction of the axis, between a point's places in two panels that are alike."""
UNPRUNED = "not pruned"


@dataclass(frozen=True, eq=False)
class _Part:
    """A dense model, and its versions with the same kinds of unit pruned at one place, quantized or not."""

    method: str
    pruned: str
    quantized: bool
    rows: pandas.DataFrame

    @property
    def changed(self) -> str:
        """The kinds of unit that were pruned, as text."""
        kinds = " + ".join(name for kind, name in UNIT_NAMES.items() if kind in self.pruned.split(", "))
        return f"{kinds} pruned" if kinds else UNPRUNED

    def varies(self, column: str) -> bool:
        """True if the part belongs in the panel of a column, and its models differ there."""
        if self.quantized and column not in CHANGED_BY_QUANTIZING:
            return False
        if column in UNIT_NAMES and column not in self.pruned.split(", "):
            return False
        return self.rows[column].nunique() > 1


@styled
def after_fine_tuning(table: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy with its interval against model size and cost, from `tables.accuracy_vs_flops`.

    `methods` maps each method to its kind. A color and line style stand for a method, a marker for the kinds
    of unit pruned, its filling for the place of the cut and for quantized weights; every line begins at the
    dense model. Rows of single seeds are left out, and so are panels in which nothing varies, or in which all
    points lie as in an earlier panel.
    """
    rows = described(table[table["seed"] == ALL])
    unit, factor = ("ms", 1000) if rows["seconds_batch_1"].max() < 1 else ("s", 1)
    rows = rows.assign(seconds_batch_1=factor * rows["seconds_batch_1"])
    parts = list(_parts(rows))
    panels = _panels(parts)
    columns = min(3, max(1, len(panels)))
    number = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(1.0 + 3.2 * columns, 0.6 + 2.7 * number), layout="constrained")
    grid = figure.subplots(number, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        note(grid[0, 0], "all models of a method have the same size and cost")
        return figure
    drawn = [part for part in parts if any(part in shown for shown in panels.values())]
    looks = {part.method: method_looks(methods)[part.method] for part in drawn}
    markers = assign([UNPRUNED, *(part.changed for part in drawn)], MARKERS)
    fills = fillings(rows)
    for axes, (column, shown) in zip(grid.flat, panels.items(), strict=False):
        for part in shown:
            _draw(axes, part, column, looks[part.method], markers, fills)
        _dress(axes, column, PANELS[column].format(unit=unit))
        chance_line(axes, rows["chance"])
    percent_axis(grid[0, 0], (100 * rows[["low", "high", "chance"]]).to_numpy().ravel())
    figure.supylabel("accuracy (%), 95% interval over questions", fontsize=9)
    legend_below(figure, _handles(looks, markers, fills))
    return figure


def _parts(rows: pandas.DataFrame) -> Iterator[_Part]:
    """Yield the parts of `described` rows; quantized models begin at the dense model too."""
    whole = rows["pruning"] == DENSE
    keys = ["base", "method", "steps", "quantized", "pruned"]
    for (base, method, _, small, pruned), members in rows[~whole].groupby(keys, sort=False):
        start = rows[whole & (rows["base"] == base) & (rows["trainings"] == members["trainings"].iloc[0])]
        yield _Part(method, pruned, bool(small), pandas.concat([start, members]))


def _panels(parts: Sequence[_Part]) -> dict[str, list[_Part]]:
    """Return the parts of each panel, without empty panels and those that repeat an earlier one."""
    panels: dict[str, list[_Part]] = {}
    for column in PANELS:
        shown = [part for part in parts if part.varies(column)]
        if shown and not any(
            shown == before and _are_alike(shown, column, other) for other, before in panels.items()
        ):
            panels[column] = shown
    return panels


def _are_alike(parts: Sequence[_Part], column: str, other: str) -> bool:
    """True if all points lie at nearly the same places of both axes."""
    places = pandas.concat([part.rows[[column, other]] for part in parts]).astype(float)
    places = (places - places.min()) / (places.max() - places.min())
    return bool((places[column] - places[other]).abs().max() <= SAME)


def _draw(
    axes: Axes,
    part: _Part,
    column: str,
    look: Look,
    markers: Mapping[str, str],
    fills: Mapping[str, str],
) -> None:
    rows = part.rows.sort_values(column)
    y, low, high = (100 * rows[name] for name in ("accuracy", "low", "high"))
    axes.errorbar(
        rows[column],
        y,
        yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)],
        color=look.color,
        ecolor=(look.color, 0.4),
        elinewidth=0.9,
        linestyle=look.dash,
    )
    for (changed, variant), points in rows.groupby([rows["pruning"] != DENSE, "variant"]):
        marker = markers[part.changed if changed else UNPRUNED]
        axes.plot(
            points[column],
            100 * points["accuracy"],
            color=look.color,
            linestyle="",
            marker=marker,
            markersize=marker_size(marker, 6),
            fillstyle=fills[str(variant)],
            markerfacecoloralt="white",
            clip_on=False,
            zorder=3,
        )


def _dress(axes: Axes, column: str, label: str) -> None:
    axes.set_xlabel(label)
    axes.margins(x=0.08)
    low, high = axes.dataLim.intervalx
    if column not in UNIT_NAMES and high > 10 * low:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=column in UNIT_NAMES))
    if column not in UNIT_NAMES:
        prefixed_ticks(axes)


def _handles(looks: Mapping[str, Look], markers: Mapping[str, str], fills: Mapping[str, str]) -> list[Line2D]:
    """Return the entries of the legend: methods, markers, and their fillings."""
    handles = [
        Line2D([], [], color=look.color, linestyle=look.dash, label=name) for name, look in looks.items()
    ]
    handles += [marker_handle(changed, marker) for changed, marker in markers.items()]
    return handles + [marker_handle(variant, "o", fill) for variant, fill in fills.items() if variant]
