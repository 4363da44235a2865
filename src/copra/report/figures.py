"""The figures of a report. Each function takes data and returns a Figure, which `save` writes."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from copra.report.importance import head_importance, layer_distances
from copra.report.style import COLORS, GRAY, MARKERS, assign, note, save, styled
from copra.report.tradeoff import pareto

__all__ = ["curriculum", "head_importance", "layer_distances", "pareto", "save", "training_curves"]


@styled
def training_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw loss against optimizer step, one panel per step of a recipe, to keep many nodes legible.

    `curves` maps a node to the lines of its training.jsonl. Seeds share a panel; the stages of a staged step
    follow each other along its x axis, with a dotted line where a stage begins.
    """
    panels: dict[str, dict[str, list]] = {}
    for node, lines in curves.items():
        name, seed, stage = _place(node)
        if lines:
            panels.setdefault(name, {}).setdefault(seed, []).append((stage, lines))
    columns = min(4, max(1, math.ceil(math.sqrt(len(panels)))))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(1 + 2.9 * columns, 0.7 + 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if not panels:
        note(grid[0, 0], "nothing was trained")
        return figure
    accuracy = False
    for axes, (name, seeds) in zip(grid.flat, panels.items(), strict=False):
        accuracy |= _training_panel(axes, seeds)
        axes.set_title("\n".join(textwrap.wrap(name, 34, break_on_hyphens=False)), fontsize=8)
    _training_legend(figure, accuracy)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    return figure


def _place(node: str) -> tuple[str, str, float]:
    """Return (panel, seed, stage) of a node: "llama@0+cot+coconut.2" is stage 2 of llama + cot + coconut."""
    path, plus, last = node.rpartition("+")
    seed = re.search(r"@([^+]+)", path)
    stage = re.fullmatch(r"(.+)\.(\d+)", last)
    name = re.sub(r"@[^+]+", "", path + plus + (stage[1] if stage else last)).replace("+", " + ")
    return name, seed[1] if seed else "", int(stage[2]) if stage else math.inf


def _training_panel(axes: Axes, seeds: Mapping[str, list]) -> bool:
    """Draw one panel; return True if it holds validation accuracy."""
    lowest, highest, right = math.inf, 0.0, None
    for color, stages in zip(_cycle(COLORS, len(seeds)), seeds.values(), strict=True):
        start, validation = 0.0, []
        for index, (_, lines) in enumerate(sorted(stages, key=lambda pair: pair[0])):
            if index:
                axes.axvline(start, color=GRAY, linewidth=0.8, linestyle=":", zorder=1)
            losses = pandas.DataFrame(
                [(start + line["step"], line["loss"]) for line in lines if "loss" in line], columns=["x", "y"]
            )
            # The loss of one step is noisy, so the median over a twentieth of the stage is drawn over it.
            smooth = losses["y"].rolling(max(1, len(losses) // 20), center=True, min_periods=1).median()
            axes.plot(losses["x"], losses["y"], color=color, alpha=0.25, linewidth=0.7)
            axes.plot(losses["x"], smooth, color=color, linewidth=1.2)
            checks = [line for line in lines if "validation_loss" in line]
            validation += [(start + line["step"], line["validation_loss"]) for line in checks]
            accuracy = [
                (start + line["step"], 100 * line["validation_accuracy"])
                for line in checks
                if line.get("validation_accuracy") is not None
            ]
            if accuracy:
                right = right or _accuracy_axis(axes)
                right.plot(*zip(*accuracy, strict=True), ".--", color=color, linewidth=1, alpha=0.7)
            values = [*smooth, *(line["validation_loss"] for line in checks)]
            lowest, highest = min([lowest, *values]), max([highest, *values])
            start += max(line["step"] for line in lines)
        if validation:
            axes.plot(*zip(*validation, strict=True), "o", color=color, markersize=4, mfc="white")
    if lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
    axes.margins(x=0.02)
    axes.locator_params(axis="x", nbins=4)
    return right is not None


def _accuracy_axis(axes: Axes) -> Axes:
    right = axes.twinx()
    right.set_ylim(0, 100)
    right.grid(False)
    right.tick_params(axis="y", labelsize=7, colors=GRAY, length=0)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    return right


def _training_legend(figure: Figure, accuracy: bool) -> None:
    handles = [
        Line2D([], [], color=COLORS[0], linewidth=1.2, label="training loss"),
        Line2D([], [], color=COLORS[0], linestyle="", marker="o", mfc="white", label="validation loss"),
    ]
    if accuracy:
        handles.append(
            Line2D(
                [], [], color=COLORS[0], linestyle="--", marker=".", label="validation accuracy (right axis)"
            )
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


@styled
def curriculum(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy with its interval after each stage, one line per staged recipe.

    Each point has recipe, stage, accuracy, low and high (shares). Several seeds of a stage are averaged,
    bounds too: the seeds answer the same questions, so they do not narrow the interval.
    """
    frame = pandas.DataFrame(points, columns=["recipe", "stage", "accuracy", "low", "high"])
    recipes = list(dict.fromkeys(frame["recipe"]))
    figure = Figure(figsize=(6.8, 3.6 + 0.1 * len(recipes)), layout="constrained")
    axes = figure.subplots()
    if not recipes:
        note(axes, "no recipe has stages, or none was evaluated after each")
        return figure
    markers = assign(recipes, MARKERS)
    for index, (color, recipe) in enumerate(zip(_cycle(COLORS, len(recipes)), recipes, strict=True)):
        rows = frame[frame["recipe"] == recipe]
        stages = 100 * rows.groupby("stage")[["accuracy", "low", "high"]].mean()
        below, above = stages["accuracy"] - stages["low"], stages["high"] - stages["accuracy"]
        # Shifted by points of the page, not of the axis, so that intervals at the same stage do not overlap
        # and every point can still be read as its stage.
        apart = ScaledTranslation((index - (len(recipes) - 1) / 2) * 3 / 72, 0, figure.dpi_scale_trans)
        axes.errorbar(
            stages.index,
            stages["accuracy"],
            yerr=[below.clip(lower=0), above.clip(lower=0)],
            color=color,
            marker=markers[recipe],
            markersize=5,
            elinewidth=0.9,
            label=recipe.replace("+", " + "),
            transform=axes.transData + apart,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="stage", ylabel="accuracy (%), 95% interval over questions")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _cycle(choices: Sequence[str], number: int) -> list[str]:
    return [choices[index % len(choices)] for index in range(number)]
