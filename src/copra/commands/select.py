"""copra select: select the units that a pruning step removes, from scores and a budget."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.common import Coded, add_settings, folder, made_by, settings_of
from copra.cost.flops import of_typical_answer
from copra.models.manifest import Manifest
from copra.pruning.plan import make_plan
from copra.schema.pruning import Prune
from copra.utils.files import (
    MANIFEST,
    read_sealed_parquet,
    summary_beside,
    write_sealed_json,
)


class SelectSettings(Coded):
    prune: Prune
    """The pruning step."""
    seed: int | None = None
    """The seed of a random choice."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to prune")
    parser.add_argument("--scores", type=Path, nargs="?", help="table of scores, where the metric needs one")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the plan")


def run(options: Namespace) -> None:
    settings = settings_of(options, SelectSettings)
    manifest = Manifest.read(options.parent)
    typical = manifest.typical_answer
    plan = make_plan(
        settings.prune,
        manifest.shape,
        manifest.dense_shape,
        read_sealed_parquet(options.scores) if options.scores else None,
        lambda shape: of_typical_answer(shape, typical).total,
        settings.seed,
    )
    if plan["warning"]:
        print(f"Warning: {plan['warning']}.")
    made_for = {"typical_answer": typical, "parent": manifest.weights.sha256}
    made_of = [options.parent / MANIFEST, *([summary_beside(options.scores)] if options.scores else [])]
    write_sealed_json(options.output, {**plan, **made_for, **made_by(options, *made_of)})
