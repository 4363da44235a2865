"""Settings and options that the commands share which answer the questions of a split."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Literal

from copra.commands.common import Coded, add_settings, folder, made_by, summary_of
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.models.checkpoint import Checkpoint, load_checkpoint
from copra.schema.settings import Precision
from copra.tasks.answers import AnswerKind
from copra.tasks.task import Split
from copra.utils.files import MANIFEST


class Answering(Coded):
    """Settings of a rule that answers the questions of a split and compares the answers."""

    node: str
    """Name of the model node."""
    split: Literal["valid", "test"] = "test"
    """Split whose questions are answered."""
    limit: int | None = None
    """Number of questions, from the start of the split (null: all)."""
    max_new_tokens: int = 256
    """Maximum number of generated tokens per answer."""
    batch_size: int = 128
    """Number of questions decoded together."""
    answers: AnswerKind = "number"
    """Comparison of answers: as numbers or as texts."""
    precision: Precision = "float32"
    """Precision of the computation, if the device supports it."""


def add_answering(parser: ArgumentParser, model: str, state: str | None = None) -> None:
    """Add the options that these commands share; `model` and `state` are the help texts of those options."""
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--model", type=folder, required=True, help=model)
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    if state is not None:
        parser.add_argument("--state", type=Path, required=True, help=state)


def load_to_answer(
    options: Namespace, precision: Precision, split: Split, *files: Path
) -> tuple[Checkpoint, dict[str, Any]]:
    """Set up torch and load the checkpoint of --model; return it with the provenance record of the result.

    `files` are inputs other than the model and the split.
    """
    set_up_torch(options, precision)
    checkpoint = load_checkpoint(options.model, precision, to_answer=True)
    return checkpoint, made_by(options, options.model / MANIFEST, summary_of(options.data, split), *files)
