"""The figure of accuracy after fine-tuning against model size, for pruned and quantized models."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from copra.report.quantized import SMALLER, bytes_a_parameter
from copra.report.style import COLORS, GRAY, MARKERS, assign, note, prefixed_ticks, styled
from copra.schema.units import UNIT_NAMES

PANELS = {
    "layers": "layers left",
    "kv_groups": "KV groups left, all layers together",
    "flops": "FLOPs per answer",
    "attention_flops": "attention FLOPs per answer",
    "kv_cache_bytes_per_token": "KV cache per token (bytes)",
    "checkpoint_bytes": "checkpoint (bytes)",
    "seconds_batch_1": "latency at batch 1 (s)",
}
"""The x axes by column. Axes that count units show only models with pruned units of that kind."""

PRUNE, QUANTIZED = "prune", "quantized"
CHANGED_BY_QUANTIZING = ("checkpoint_bytes", "seconds_batch_1")
"""The x axes that show quantized models; on the others these have the same x as their parents."""

STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, eq=False)
class _Line:
    """The dense model of a method, and its versions with the same kinds of unit pruned, quantized or not."""

    label: str
    kinds: tuple[str, ...]
    rows: pandas.DataFrame

    @property
    def changed(self) -> str:
        """The changes made to the models, as text."""
        units = " + ".join(UNIT_NAMES[kind] for kind in self.kinds if kind in UNIT_NAMES)
        words = [f"{units} pruned"] if units else []
        words += [QUANTIZED] if QUANTIZED in self.kinds else []
        return ", ".join(words) or "no units pruned"


@styled
def after_fine_tuning(table: pandas.DataFrame) -> Figure:
    """Draw accuracy with its interval against model size and cost, from `tables.accuracy_vs_flops`.

    One color per method, and one line style per kind of pruning and for quantized weights; every line begins
    at the dense model. If recipes of one method prune at different places, each order of steps has its own
    color. Rows of single seeds are left out, and so are panels without variation.
    """
    lines = list(_lines(table[table["seed"] == "all"]))
    panels = {column: [line for line in lines if _varies(line, column)] for column in PANELS}
    panels = {column: shown for column, shown in panels.items() if shown}
    rows = 1 if len(panels) < 4 else 2
    columns = max(1, math.ceil(len(panels) / rows))
    figure = Figure(figsize=(1.0 + 2.9 * columns, 1.0 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        note(grid[0, 0], "no pruned model differs from its dense one")
        return figure
    colors = assign((line.label for line in lines), COLORS)
    looks = assign((line.changed for line in lines), list(zip(itertools.cycle(STYLES), MARKERS[1:])))
    for axes, (column, shown) in zip(grid.flat, panels.items(), strict=False):
        for line in shown:
            _draw(axes, line.rows.sort_values(column), column, colors[line.label], looks[line.changed])
        _dress(axes, column)
    figure.supylabel("accuracy (%), 95% interval over questions", fontsize=9)
    drawn = [line for line in lines if any(line in shown for shown in panels.values())]
    _legend(figure, drawn, colors, looks)
    return figure


def _lines(rows: pandas.DataFrame) -> Iterator[_Line]:
    """Yield the lines: changed recipes by order of steps and kinds of change, each with its dense model."""
    whole = {base: _sizes(group) for base, group in rows.groupby("base")}
    rows = rows.assign(kinds=[_kinds(row, whole[row["base"]]) for _, row in rows.iterrows()])
    rows = rows.assign(steps=rows.apply(_order, axis=1))
    rows = rows.assign(trained=rows["steps"].map(_trained))
    dense, changed = rows[rows["pruning"] == "dense"], rows[rows["pruning"] != "dense"]
    alike = {ends: _alike(group) for ends, group in changed.groupby(["base", "method"])}
    keys = ["base", "method", "steps", "kinds"]
    for (base, method, steps, kinds), members in changed.groupby(keys, sort=False):
        label = method if alike[base, method] else steps.replace(" > ", " → ")
        same = dense[(dense["base"] == base) & (dense["steps"] == _trained(steps))]
        yield _Line(f"{base}: {label}" if len(whole) > 1 else label, kinds, pandas.concat([same, members]))


def _order(row: pandas.Series) -> str:
    """Return the steps after the base, consecutive prunings as one word, without a quantization.

    A quantization is always the last step.
    """
    prunings = row["pruning"].split(" + ")
    words: list[str] = []
    for step in row["order"].split(" > ")[1 : -1 if QUANTIZED in row["kinds"] else None]:
        word = PRUNE if step in prunings else step
        if word != PRUNE or words[-1:] != [PRUNE]:
            words.append(word)
    return " > ".join(words)


def _trained(steps: str) -> str:
    """Return an order of steps without the prunings."""
    return " > ".join(step for step in steps.split(" > ") if step != PRUNE)


def _alike(rows: pandas.DataFrame) -> bool:
    """True if these recipes have the same trainings, and the pruned ones are pruned at the same place."""
    return rows["trained"].nunique() == 1 and len(set(rows["steps"]) - set(rows["trained"])) <= 1


def _sizes(rows: pandas.DataFrame) -> dict[str, float]:
    """Return the sizes of a base: those of its dense model, or the largest ones if none was evaluated."""
    dense = rows[rows["pruning"] == "dense"]
    chosen = dense if len(dense) else rows
    return chosen[list(UNIT_NAMES)].max().to_dict() | {"bytes": bytes_a_parameter(chosen).max()}


def _kinds(row: pandas.Series, whole: dict[str, float]) -> tuple[str, ...]:
    """Return the kinds of change of a model from its base: the pruned kinds of unit, and "quantized".

    Units that were removed with a layer do not count as pruned. Weights with fewer bytes are quantized.
    """
    within = {"kv_groups": "layers", "heads": "kv_groups", "neurons": "layers"}
    fewer = ["layers"] if row["layers"] < whole["layers"] else []
    fewer += [kind for kind, outer in within.items() if row[kind] * whole[outer] < whole[kind] * row[outer]]
    narrower = bytes_a_parameter(row) < SMALLER * whole["bytes"]
    return (*fewer, *([QUANTIZED] if narrower else []))


def _varies(line: _Line, column: str) -> bool:
    if QUANTIZED in line.kinds and column not in CHANGED_BY_QUANTIZING:
        return False
    return (column in line.kinds or column not in UNIT_NAMES) and line.rows[column].nunique() > 1


def _draw(axes: Axes, rows: pandas.DataFrame, column: str, color: str, look: tuple[Any, str]) -> None:
    style, marker = look
    y, low, high = (100 * rows[name] for name in ("accuracy", "low", "high"))
    axes.errorbar(
        rows[column],
        y,
        yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)],
        color=color,
        ecolor=(color, 0.4),
        elinewidth=0.9,
        linestyle=style,
        marker=marker,
        markersize=5,
    )
    whole = rows["pruning"] == "dense"
    axes.plot(rows[column][whole], y[whole], "o", color=color, markersize=6.5, mec="white", mew=0.7, zorder=3)


def _dress(axes: Axes, column: str) -> None:
    axes.set_xlabel(PANELS[column])
    axes.margins(x=0.08)
    low, high = axes.dataLim.intervalx
    if column not in UNIT_NAMES and high > 10 * low:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=column in UNIT_NAMES))
    if column not in UNIT_NAMES:
        prefixed_ticks(axes)


def _legend(figure: Figure, lines: list[_Line], colors: dict, looks: dict) -> None:
    shown = {line.label: colors[line.label] for line in lines}
    handles = [Line2D([], [], color=color, linewidth=3, label=label) for label, color in shown.items()]
    handles.append(Line2D([], [], color=GRAY, linestyle="", marker="o", label="not pruned"))
    for changed in dict.fromkeys(line.changed for line in lines):
        style, marker = looks[changed]
        handles.append(
            Line2D([], [], color=GRAY, linestyle=style, marker=marker, markersize=5, label=changed)
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handlelength=2.6)
