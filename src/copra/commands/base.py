"""copra base: load or initialize a base model, and add the latent markers."""

from argparse import ArgumentParser, Namespace

from copra.commands.common import (
    Coded,
    add_files,
    add_settings,
    folder,
    located,
    made_by,
    rows_of,
    settings_of,
    summary_of,
)
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.data.tokenization import typical_lengths
from copra.models.bases import brings_trained_markers, make_base
from copra.models.checkpoint import save_checkpoint
from copra.models.manifest import Provenance
from copra.models.shape import shape_of
from copra.schema.base import Base


class BaseSettings(Coded):
    node: str
    """Name of the model node."""
    base: Base
    """Settings of the base model."""
    seed: int | None
    """Seed of random weights (null: none)."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_files(parser)
    add_threads(parser)
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=folder, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    settings = settings_of(options, BaseSettings)
    set_up_torch(options)
    rows = rows_of(options.data, "train")
    base = located(settings.base, options)
    model, tokenizer = make_base(base, rows, settings.seed)
    provenance = Provenance(
        node=settings.node,
        # Local files are identified by their content, not by their path.
        base=settings.base.canonical(),
        seed=settings.seed,
        lineage=[],
        method=None,
        decoding=None,
        dense_shape=shape_of(model.config.to_dict()),
        typical_answer=typical_lengths(tokenizer, rows_of(options.data, "valid", 500)),
        training_flops=0,
        trained_markers=brings_trained_markers(base),
        **made_by(options, *(summary_of(options.data, split) for split in ("train", "valid"))),
    )
    save_checkpoint(options.output, model, tokenizer, provenance)
