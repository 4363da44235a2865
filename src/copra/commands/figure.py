"""copra figure: draw a figure."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas
from matplotlib.figure import Figure
from pydantic import Field

from copra.commands.common import Coded, add_settings, folder, made_by, recorded_shape, settings_of
from copra.models.manifest import Manifest
from copra.models.pack import LOG
from copra.models.seal import check_file
from copra.report import figures, latents
from copra.report.after import after_fine_tuning
from copra.report.by_task import by_task_figure
from copra.report.contrasts_figure import contrasts_figure
from copra.report.latent_sources_figure import sources_figure
from copra.report.lens import lens_figure
from copra.report.orders_figure import orders_figure
from copra.report.pruning import pruning_figure
from copra.schema.curve import NamedCurve
from copra.schema.units import UNIT_KINDS, group_size, units_of
from copra.utils.files import (
    MANIFEST,
    METRICS,
    read_json,
    read_json_lines,
    read_parquet,
    read_sealed_parquet,
    summary_beside,
)

Kind = Literal[
    "accuracy_vs_flops",
    "accuracy_by_task",
    "accuracy_vs_latents",
    "layers_and_latents",
    "training_curves",
    "curriculum",
    "layer_distances",
    "head_importance",
    "latent_sources",
    "latent_lens",
    "pruning_curves",
    "drop_orders",
    "after_fine_tuning",
    "contrasts",
]


class FigureSettings(Coded):
    kind: Kind
    methods: list[tuple[str, str]] = Field(default_factory=list)
    """The methods that it shows in their colors with their kinds, and all others of these kinds, in order."""
    nodes: list[Any] = Field(default_factory=list)
    """The nodes that it shows, where it shows nodes."""
    curve: NamedCurve | None = None
    """The pruning curve that it shows, where it shows one."""

    @property
    def shown_curve(self) -> NamedCurve:
        """The pruning curve of a figure that shows one."""
        assert self.curve is not None, self.kind
        return self.curve


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument(
        "--input", type=Path, required=True, help="a table, or the folder that nodes are found in"
    )
    parser.add_argument("--model", type=folder, help="the scored checkpoint, where sizes matter")
    parser.add_argument("--svg", type=Path, required=True, help="SVG file to write")
    parser.add_argument("--png", type=Path, required=True, help="PNG file to write")


def run(options: Namespace) -> None:
    settings = settings_of(options, FigureSettings)
    figure, made_of = FIGURES[settings.kind](settings, options)
    figures.save(figure, options.svg, options.png, made_by(options, *made_of))


Drawn = tuple[Figure, list[Path]]
"""A figure, and the files that it is made of; large files by the small ones that stand for them."""
Draw = Callable[[FigureSettings, Namespace], Drawn]


def _of_table(draw: Callable[[pandas.DataFrame], Figure]) -> Draw:
    return lambda _, options: (draw(read_parquet(options.input)), [options.input])


def _of_table_in_colors(draw: Callable[[pandas.DataFrame, dict[str, str]], Figure]) -> Draw:
    return lambda settings, options: (
        draw(read_parquet(options.input), dict(settings.methods)),
        [options.input],
    )


def _layer_distances(_: FigureSettings, options: Namespace) -> Drawn:
    figure = figures.layer_distances(read_sealed_parquet(options.input))
    return figure, [summary_beside(options.input)]


def _head_importance(_: FigureSettings, options: Namespace) -> Drawn:
    sizes = [group_size(layer) for layer in recorded_shape(options.model).layers]
    figure = figures.head_importance(read_sealed_parquet(options.input), sizes)
    return figure, [options.model / MANIFEST, summary_beside(options.input)]


def _pruning_curve(settings: FigureSettings, options: Namespace) -> Drawn:
    table = read_parquet(options.input)
    return pruning_figure(table[table["curve"] == settings.shown_curve.name]), [options.input]


def _drop_orders(settings: FigureSettings, options: Namespace) -> Drawn:
    shown = settings.shown_curve
    scores = options.input / shown.nodes[0]
    figure = orders_figure(shown, recorded_shape(options.model), scores)
    tables = [summary_beside(scores / table) for table in shown.curve.tables()]
    return figure, [options.model / MANIFEST, *tables]


def _training_curves(settings: FigureSettings, options: Namespace) -> Drawn:
    logs = {node: _log(options.input / node) for node in settings.nodes}
    models = [{"node": node, **_sizes(options.input / node)} for node in settings.nodes]
    figure = figures.training_curves(logs, pandas.DataFrame(models), dict(settings.methods))
    return figure, [options.input / node / MANIFEST for node in settings.nodes]  # which seals the log


def _curriculum(settings: FigureSettings, options: Namespace) -> Drawn:
    made_of = [options.input / point["node"] / METRICS for point in settings.nodes]
    points = [
        {"node": point["node"], "stage": point["stage"], **metrics["units"]}
        | {key: metrics[key] for key in ("accuracy", "low", "high")}
        for point, metrics in zip(settings.nodes, map(read_json, made_of), strict=True)
    ]
    return figures.curriculum(pandas.DataFrame(points), dict(settings.methods)), made_of


def _sizes(model: Path) -> dict[str, int]:
    """Return the numbers of units of a checkpoint."""
    shape = recorded_shape(model)
    return {kind: len(units_of(kind, shape)) for kind in UNIT_KINDS}


def _log(model: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, as it was written: object storage may bring it without the manifest."""
    if (model / MANIFEST).is_file():
        check_file(model, LOG, Manifest.read(model).files[LOG])
    return read_json_lines(model / LOG)


FIGURES: dict[Kind, Draw] = {
    "accuracy_vs_flops": _of_table_in_colors(figures.pareto),
    "accuracy_by_task": _of_table_in_colors(by_task_figure),
    "accuracy_vs_latents": _of_table_in_colors(latents.latents_figure),
    "layers_and_latents": _of_table_in_colors(latents.layers_and_latents),
    "training_curves": _training_curves,
    "curriculum": _curriculum,
    "layer_distances": _layer_distances,
    "head_importance": _head_importance,
    "latent_sources": _of_table(sources_figure),
    "latent_lens": _of_table(lens_figure),
    "pruning_curves": _pruning_curve,
    "drop_orders": _drop_orders,
    "after_fine_tuning": _of_table_in_colors(after_fine_tuning),
    "contrasts": _of_table(contrasts_figure),
}
