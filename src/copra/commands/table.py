"""copra table: make a table from evaluations, pruning curves or scores."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pandas

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


class TableSettings(Coded):
    """Settings of one table, which those that are given name.

    `rows` are for the table before fine-tuning, `recipes`, `reference` and `primary` for accuracy against
    FLOPs, `asked` and `reference` for accuracy on each task, `swept` for accuracy against latents, `swapped`
    for accuracy with latents of other sources, `seen` for the likeliest tokens of latents, `measured` for
    pruning curves, `ordered` for the orders in which layers are removed, `contrasts`, `nodes` and `primary`
    for contrasts, `converted` for models in the formats of other programs.
    """

    rows: list[dict[str, str]] | None = None
    """Pruned nodes and their parents."""
    reference: str | None = None
    """The recipe that all others are compared with."""
    primary: str | None = None
    """The recipe, or contrast, whose comparison is not corrected for the number of the others."""
    recipes: list[dict[str, Any]] | None = None
    """Recipes and the nodes that they end at."""
    asked: list[dict[str, Any]] | None = None
    """Tasks, recipes and the names of their evaluations."""
    swept: list[dict[str, Any]] | None = None
    """Recipes and nodes that were evaluated with several numbers of latents."""
    swapped: list[dict[str, Any]] | None = None
    """Recipes and the nodes that they end at, which were evaluated with latents of other sources."""
    seen: list[str] | None = None
    """Nodes whose latents were looked at."""
    measured: list[str] | None = None
    """Tables of pruning curves, as in layers/llama@0+cot."""
    ordered: list[NamedCurve] | None = None
    """Pruning curves of layers."""
    contrasts: list[NamedContrast] | None = None
    """Contrasts between recipes."""
    nodes: dict[str, list[str]] | None = None
    """The nodes that the recipes in contrasts end at."""
    converted: dict[str, str] | None = None
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
    made_of: list[Path] = []
    if settings.rows is not None:
        nodes = [row[key] for row in settings.rows for key in ("node", "parent_node")]
        made_of = [options.evaluations / node / METRICS for node in nodes]
        table = before_fine_tuning(_folders(options, nodes), settings.canonical())
    elif settings.asked is not None:
        names = [name for asked in settings.asked for name in asked["evaluations"]]
        made_of = [options.evaluations / name / METRICS for name in names]
        table = accuracy_by_task(_folders(options, names), settings.canonical())
    elif settings.swept is not None:
        folders = [options.evaluations / swept["node"] for swept in settings.swept]
        made_of = [folder / file for folder in folders for file in ("latents.parquet", METRICS)]
        table = accuracy_vs_latents(settings.swept, options.evaluations)
    elif settings.swapped is not None:
        nodes = [node for recipe in settings.swapped for node in recipe["nodes"]]
        made_of = [options.evaluations / node / "latents_from.parquet" for node in nodes]
        table = latent_sources(settings.swapped, options.evaluations)
    elif settings.seen is not None:
        made_of = [options.evaluations / node / "lens.parquet" for node in settings.seen]
        table = latent_lens(settings.seen, options.evaluations)
    elif settings.converted is not None:
        made_of = [options.conversions / node / "measured.parquet" for node in settings.converted]
        table = conversions(settings.converted, options.conversions)
    elif settings.measured is not None:
        made_of = [options.curves / f"{name}.parquet" for name in settings.measured]
        table = _together(made_of)
    elif settings.ordered is not None:
        models = {node for named in settings.ordered for node in named.nodes}
        made_of = [options.models / node / MANIFEST for node in models]
        made_of += [
            summary_beside(options.scores / node / table)
            for named in settings.ordered
            for node in named.nodes
            for table in named.curve.tables()
        ]
        shapes = {node: recorded_shape(options.models / node) for node in models}
        table = drop_orders(settings.ordered, shapes, options.scores)
    elif settings.contrasts is not None and settings.nodes is not None:
        nodes = [node for ends in settings.nodes.values() for node in ends]
        made_of = [options.evaluations / node / METRICS for node in nodes]
        table = contrasts(_folders(options, nodes), settings.contrasts, settings.nodes, settings.primary)
    else:
        starts = [recipe["start"] for recipe in settings.recipes or [] if recipe.get("start")]
        nodes = [node for recipe in settings.recipes or [] for node in recipe["nodes"]]
        nodes += [node for start in starts if start["answers"] for node in start["nodes"]]
        started = {node: options.models / node for start in starts for node in start["nodes"]}
        made_of = [options.evaluations / node / METRICS for node in nodes]
        made_of += [options.latency] if options.latency else []
        made_of += [model / MANIFEST for model in started.values()]
        healing = {node: healing_steps(Manifest.read(model).lineage) for node, model in started.items()}
        table = accuracy_vs_flops(_folders(options, nodes), options.latency, settings.canonical(), healing)
    write_parquet(options.output, table, made_by(options, *made_of))


def _together(files: list[Path]) -> Any:
    return pandas.concat([read_parquet(file) for file in files], ignore_index=True)


def _folders(options: Namespace, evaluations: list[str]) -> dict[str, Path]:
    return {name: options.evaluations / name for name in evaluations}
