"""copra table: make a table from evaluations, pruning curves or scores."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas
from pydantic import Field

from copra.commands.common import Coded, add_settings, folder, made_by, recorded_shape, settings_of
from copra.models.manifest import Manifest
from copra.report.contrasts import contrasts
from copra.report.conversions import conversions
from copra.report.latent_sources import latent_sources
from copra.report.latent_tables import accuracy_vs_latents, latent_lens
from copra.report.orders import drop_orders
from copra.report.starts import healing_steps
from copra.report.tables import accuracy_by_task, accuracy_vs_flops, before_fine_tuning
from copra.schema.contrast import NamedContrast
from copra.schema.curve import NamedCurve
from copra.utils.files import MANIFEST, METRICS, read_parquet, summary_beside, write_parquet

Kind = Literal[
    "accuracy_vs_flops",
    "before_fine_tuning",
    "accuracy_by_task",
    "accuracy_vs_latents",
    "latent_sources",
    "latent_lens",
    "pruning_curves",
    "drop_orders",
    "contrasts",
    "conversions",
]


class TableSettings(Coded):
    """Settings of one table: its kind, and what a table of this kind shows."""

    kind: Kind
    reference: str | None = None
    """The recipe that all others are compared with."""
    primary: str | None = None
    """The recipe, or contrast, whose comparison is not corrected for the number of the others."""
    recipes: list[dict[str, Any]] = Field(default_factory=list)
    """Recipes, with their labels and the nodes that they end at as far as the table needs them."""
    pruned: list[dict[str, str]] = Field(default_factory=list)
    """Pruned nodes and their parents."""
    asked: list[dict[str, Any]] = Field(default_factory=list)
    """Tasks, recipes and the names of their evaluations."""
    nodes: list[str] = Field(default_factory=list)
    """Nodes whose latents were looked at."""
    curves: list[str] = Field(default_factory=list)
    """Tables of pruning curves, as in layers/llama@0+cot."""
    ordered: list[NamedCurve] = Field(default_factory=list)
    """Pruning curves of layers."""
    contrasts: list[NamedContrast] = Field(default_factory=list)
    """Contrasts between recipes."""
    ends: dict[str, list[str]] = Field(default_factory=dict)
    """The nodes that the recipes in contrasts end at."""
    converted: list[tuple[str, str]] = Field(default_factory=list)
    """Nodes that were converted, with their recipes."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--evaluations", type=folder, help="folder of all evaluations")
    parser.add_argument("--curves", type=Path, help="folder of all pruning curves")
    parser.add_argument("--conversions", type=Path, help="folder of all conversions")
    parser.add_argument("--scores", type=Path, help="folder of all scores")
    parser.add_argument("--models", type=Path, help="folder of all models")
    parser.add_argument("--latency", type=Path, nargs="?", help="table of measured times, if there is one")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table")


def run(options: Namespace) -> None:
    settings = settings_of(options, TableSettings)
    table, made_of = TABLES[settings.kind](settings, options)
    write_parquet(options.output, table, made_by(options, *made_of))


Made = tuple[pandas.DataFrame, list[Path]]
"""A table, and the files that it is made of; large files by the small ones that stand for them."""


def _accuracy_vs_flops(settings: TableSettings, options: Namespace) -> Made:
    starts = [recipe["start"] for recipe in settings.recipes if recipe.get("start")]
    nodes = [node for recipe in settings.recipes for node in recipe["nodes"]]
    nodes += [node for start in starts if start["answers"] for node in start["nodes"]]
    started = {node: options.models / node for start in starts for node in start["nodes"]}
    folders = _evaluations(options, nodes)
    made_of = [*_metrics(folders), *([options.latency] if options.latency else [])]
    made_of += [model / MANIFEST for model in started.values()]
    healing = {node: healing_steps(Manifest.read(model).lineage) for node, model in started.items()}
    return accuracy_vs_flops(folders, options.latency, settings.canonical(), healing), made_of


def _before_fine_tuning(settings: TableSettings, options: Namespace) -> Made:
    nodes = [row[key] for row in settings.pruned for key in ("node", "parent_node")]
    folders = _evaluations(options, nodes)
    return before_fine_tuning(folders, settings.canonical()), _metrics(folders)


def _accuracy_by_task(settings: TableSettings, options: Namespace) -> Made:
    folders = _evaluations(options, [name for asked in settings.asked for name in asked["evaluations"]])
    return accuracy_by_task(folders, settings.canonical()), _metrics(folders)


def _accuracy_vs_latents(settings: TableSettings, options: Namespace) -> Made:
    folders = _evaluations(options, [recipe["node"] for recipe in settings.recipes])
    made_of = [folder / file for folder in folders.values() for file in ("latents.parquet", METRICS)]
    return accuracy_vs_latents(settings.recipes, options.evaluations), made_of


def _latent_sources(settings: TableSettings, options: Namespace) -> Made:
    nodes = [node for recipe in settings.recipes for node in recipe["nodes"]]
    made_of = [options.evaluations / node / "latents_from.parquet" for node in nodes]
    return latent_sources(settings.recipes, options.evaluations), made_of


def _latent_lens(settings: TableSettings, options: Namespace) -> Made:
    made_of = [options.evaluations / node / "lens.parquet" for node in settings.nodes]
    return latent_lens(settings.nodes, options.evaluations), made_of


def _pruning_curves(settings: TableSettings, options: Namespace) -> Made:
    made_of = [options.curves / f"{name}.parquet" for name in settings.curves]
    return pandas.concat(map(read_parquet, made_of), ignore_index=True), made_of


def _drop_orders(settings: TableSettings, options: Namespace) -> Made:
    models = dict.fromkeys(node for named in settings.ordered for node in named.nodes)
    made_of = [options.models / node / MANIFEST for node in models]
    made_of += [
        summary_beside(options.scores / node / table)
        for named in settings.ordered
        for node in named.nodes
        for table in named.curve.tables()
    ]
    shapes = {node: recorded_shape(options.models / node) for node in models}
    return drop_orders(settings.ordered, shapes, options.scores), made_of


def _contrasts(settings: TableSettings, options: Namespace) -> Made:
    folders = _evaluations(options, [node for ends in settings.ends.values() for node in ends])
    return contrasts(folders, settings.contrasts, settings.ends, settings.primary), _metrics(folders)


def _conversions(settings: TableSettings, options: Namespace) -> Made:
    made_of = [options.conversions / node / "measured.parquet" for node, _ in settings.converted]
    return conversions(settings.converted, options.conversions), made_of


def _evaluations(options: Namespace, names: list[str]) -> dict[str, Path]:
    """Return the folders of evaluations by name."""
    return {name: options.evaluations / name for name in names}


def _metrics(folders: Mapping[str, Path]) -> list[Path]:
    return [folder / METRICS for folder in folders.values()]


TABLES: dict[Kind, Callable[[TableSettings, Namespace], Made]] = {
    "accuracy_vs_flops": _accuracy_vs_flops,
    "before_fine_tuning": _before_fine_tuning,
    "accuracy_by_task": _accuracy_by_task,
    "accuracy_vs_latents": _accuracy_vs_latents,
    "latent_sources": _latent_sources,
    "latent_lens": _latent_lens,
    "pruning_curves": _pruning_curves,
    "drop_orders": _drop_orders,
    "contrasts": _contrasts,
    "conversions": _conversions,
}
