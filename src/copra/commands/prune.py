"""copra prune: apply a pruning plan to a checkpoint, and verify that nothing else changed."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.common import (
    Coded,
    add_settings,
    folder,
    made_by,
    rows_of,
    settings_of,
    summary_of,
)
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.models.checkpoint import load_unquantized, save_changed
from copra.pruning.proof import LIMIT, verify
from copra.pruning.scoring.calibration import text_batch
from copra.pruning.surgery import prune
from copra.schema.pruning import PROOF_ROWS
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, digest, read_sealed_json


class PruneSettings(Coded):
    node: str
    """Name of the model node."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to prune")
    parser.add_argument(
        "--plan", type=Path, required=True, help="pruning plan (JSON) with the units to remove"
    )
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=folder, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    settings = settings_of(options, PruneSettings)
    set_up_torch(options)
    parent = load_unquantized(options.parent)
    plan = read_sealed_json(options.plan)
    if plan["parent"] != parent.manifest.weights.sha256:
        raise CopraError(
            f"{options.plan}: made for another model than {options.parent}; run snakemake again."
        )
    pruned = prune(parent.model, plan)
    rows = rows_of(options.data, "train", PROOF_ROWS)
    difference = verify(parent.model, pruned, plan, *text_batch(parent.tokenizer, rows))
    step = {
        "plan": digest(plan),
        "removed": plan["removed"],
        "parent": plan["parent"],
        "proof": {
            "rows": len(rows),
            "dtype": "float64",
            "largest_logit_difference": difference,
            "limit": LIMIT,
        },
    }
    more = {
        "budget_missed": plan["budget_missed"],
        **made_by(options, options.parent / MANIFEST, options.plan, summary_of(options.data, "train")),
    }
    save_changed(options.output, pruned, parent, settings.node, step, **more)
