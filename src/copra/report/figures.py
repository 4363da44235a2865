"""The figures of trainings: losses over optimizer steps, and accuracy after each stage of a curriculum."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from copra.report.by_method import LeftLooks, explain, left_looks, panel_grid, with_labels
from copra.report.comparisons import seed_of, without_seed
from copra.report.importance import head_importance, layer_distances
from copra.report.style import GRAY, marker_size, method_looks, percent_axis, save, styled
from copra.report.tradeoff import pareto

__all__ = ["curriculum", "head_importance", "layer_distances", "pareto", "save", "training_curves"]

Log = Sequence[Mapping[str, Any]]
"""The lines of a training.jsonl."""
LOSS, VALIDATION, ACCURACY = "loss", "validation_loss", "validation_accuracy"


@styled
def training_curves(logs: Mapping[str, Log], models: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw loss against optimizer step, one panel per training step of the config.

    `logs` maps a node to the lines of its training.jsonl, `models` has the columns node and numbers of units,
    and `methods` maps each method to its kind. A line is what was left of the model when it was trained: the
    running median over a twentieth of each stage, and the mean over seeds, which are drawn lightly. Markers
    are the validation loss. The stages of a staged step follow each other, with a dotted line where a stage
    begins. Validation accuracy, if any was measured, has a second panel below the first.
    """
    rows = with_labels(_by_training(models))
    values = pandas.concat([_values(logs, members) for _, members in rows.groupby(["method", "label"])])
    looks, left = method_looks(methods), left_looks(rows)
    names = list(dict.fromkeys(rows["method"]))
    measured = [LOSS, ACCURACY] if values[ACCURACY].notna().any() else [LOSS]
    figure, panels = panel_grid(names, looks, len(measured))
    for name, panel in zip(names, panels, strict=True):
        for label in left.labels:
            own = values[(values["method"] == name) & (values["label"] == label)]
            for kind, axes in zip(measured, panel, strict=True):
                if len(own):
                    _training(axes, own, kind, left, label, looks[name].color)
    _dress_training(panels, values, measured)
    handles = [Line2D([], [], color=GRAY, marker="o", mfc="white", linestyle="", label="validation loss")]
    explain(figure, left, handles)
    return figure


def _by_training(models: pandas.DataFrame) -> pandas.DataFrame:
    """Return models with the columns base, path, method, seed and stage, from their names.

    "llama@0+cot+coconut.2" is stage 2 of method coconut, with path "llama+cot" and seed "0"; the last stage
    of a step has no number.
    """
    rows = []
    for node in models["node"]:
        path, _, last = node.rpartition("+")
        method, _, stage = re.fullmatch(r"(.+?)(\.(\d+))?", without_seed(last)).groups()  # type: ignore[union-attr]
        rows.append(
            {"base": without_seed(path).partition("+")[0], "path": without_seed(path), "method": method}
            | {"seed": seed_of(node), "stage": int(stage) if stage else math.inf}
        )
    return models.assign(**pandas.DataFrame(rows, index=models.index))


def _values(logs: Mapping[str, Log], models: pandas.DataFrame) -> pandas.DataFrame:
    """Return the logged values of one line, with stages one after another: x, seed, and what was measured.

    `start` is where the stage begins. The loss of one step is noisy, so it is the running median over a
    twentieth of the stage.
    """
    frames = []
    for seed, stages in models.sort_values("stage").groupby("seed"):
        start = 0.0
        for node in stages["node"]:
            if not logs[node]:
                continue
            frame = pandas.DataFrame(list(logs[node]))
            frame = frame.reindex(columns=["step", LOSS, VALIDATION, ACCURACY]).astype(float)
            losses = frame[LOSS].dropna()
            frame[LOSS] = losses.rolling(max(1, len(losses) // 20), center=True, min_periods=1).median()
            frames.append(frame.assign(x=start + frame["step"], start=start, seed=seed))
            start += frame["step"].max()
    found = (
        pandas.concat(frames)
        if frames
        else pandas.DataFrame(columns=["x", "start", "seed", LOSS, VALIDATION, ACCURACY])
    )
    return found.assign(method=models["method"].iloc[0], label=models["label"].iloc[0])


def _training(
    axes: Axes, values: pandas.DataFrame, kind: str, left: LeftLooks, label: str, color: str
) -> None:
    """Draw one line of a panel: the mean over seeds, and lightly each seed if there are several."""
    shade, marker = left.shade(label, color), left.marker(label)
    values = values.assign(**{ACCURACY: 100 * values[ACCURACY]})
    seeds = dict(list(values.groupby("seed")))
    if len(seeds) > 1:
        for own in seeds.values():
            points = own[["x", kind]].dropna()
            axes.plot(points["x"], points[kind], color=shade, linewidth=0.7, alpha=0.35, gid="seed")
    mean = values.groupby("x")[[LOSS, VALIDATION, ACCURACY]].mean()
    points = mean[kind].dropna()
    look: dict[str, Any] = {"color": shade, "linewidth": 1.4, "label": label, "gid": "mean"}
    if kind == ACCURACY:
        look |= {"marker": marker, "markersize": marker_size(marker, 4.5), "clip_on": False}
    if len(points):
        axes.plot(points.index, points, **look)
    checks = mean[VALIDATION].dropna()
    if kind == LOSS and len(checks):
        size = marker_size(marker, 4.5)
        axes.plot(
            checks.index,
            checks,
            color=shade,
            marker=marker,
            markersize=size,
            mfc="white",
            linestyle="",
            gid="validation",
        )
    for start in values["start"].unique():
        if start:
            axes.axvline(start, color=GRAY, linewidth=0.8, linestyle=":", zorder=1, gid="stage")


def _dress_training(
    panels: Sequence[Sequence[Axes]], values: pandas.DataFrame, measured: Sequence[str]
) -> None:
    """Set up the axes, which the panels of a kind share."""
    drawn = values[[LOSS, VALIDATION]]
    columns = zip(measured, zip(*panels, strict=True), strict=True)
    first = {
        kind: next(number for number, axes in enumerate(row) if _has_line(axes)) for kind, row in columns
    }
    for number, panel in enumerate(panels):
        for kind, axes in zip(measured, panel, strict=True):
            axes.margins(x=0.03)
            axes.locator_params(axis="x", nbins=4)
            if kind == measured[-1]:
                axes.set_xlabel("optimizer step")
            if kind == ACCURACY:
                percent_axis(axes, [0, *(100 * values[ACCURACY])])
            elif drawn.min(axis=None) > 0 and drawn.max(axis=None) > 20 * drawn.min(axis=None):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            if number == first[kind]:
                axes.set_ylabel("loss" if kind == LOSS else "validation accuracy (%)")
        if not _has_line(panel[-1]):
            # Trainings that select by loss have no accuracies; the axis of steps moves up.
            panel[-1].set_visible(False)
            panel[0].set_xlabel("optimizer step")
            panel[0].tick_params(labelbottom=True)


def _has_line(axes: Axes) -> bool:
    return any(line.get_gid() == "mean" for line in axes.lines)


@styled
def curriculum(points: pandas.DataFrame, methods: Mapping[str, str]) -> Figure:
    """Draw accuracy with its interval after each stage, one panel per staged step of the config.

    Each point has node, stage, accuracy, low and high (shares) and the numbers of units; `methods` maps each
    method to its kind. A line is what was left of the model. Several seeds of a stage are averaged, bounds
    too, since the seeds answer the same questions; the seeds are light dots.
    """
    rows = with_labels(_by_training(points).assign(stage=points["stage"]))
    looks, left = method_looks(methods), left_looks(rows)
    names = list(dict.fromkeys(rows["method"]))
    figure, panels = panel_grid(names, looks, height=3.4)
    for name, (axes,) in zip(names, panels, strict=True):
        for index, label in enumerate(left.labels):
            own = rows[(rows["method"] == name) & (rows["label"] == label)]
            # Shifted by points of the page, not of the axis, so that intervals at the same stage do not
            # overlap and every point can still be read as its stage.
            shift = (index - (len(left.labels) - 1) / 2) * 3 / 72
            if len(own):
                _stages(axes, own, left, label, looks[name].color, shift)
        # Matplotlib finds no limits for points that are moved on the page.
        axes.set_xlim(rows["stage"].min() - 0.3, rows["stage"].max() + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("stage")
        percent_axis(axes, (100 * rows[["accuracy", "low", "high"]]).to_numpy().ravel())
    panels[0][0].set_ylabel("accuracy (%), 95% interval over questions")
    explain(figure, left)
    return figure


def _stages(
    axes: Axes, rows: pandas.DataFrame, left: LeftLooks, label: str, color: str, shift: float
) -> None:
    """Draw one line of a panel of the curriculum."""
    stages = rows.groupby("stage")[["accuracy", "low", "high"]].mean()
    moved = axes.transData + ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans)
    shade = left.shade(label, color)
    if rows["seed"].nunique() > 1:
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3.4, "mew": 0, "alpha": 0.35}
        axes.plot(rows["stage"], 100 * rows["accuracy"], color=shade, transform=moved, gid="seeds", **dots)
    left.draw(axes, label, color, stages.index, stages, transform=moved)
