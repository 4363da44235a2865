"""Settings and options that the commands share which answer the questions of a split."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas

from copra.commands.common import Coded, add_settings, folder, made_by, summary_of
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.data.sequences import GenerationSpec
from copra.evaluation.accuracy import compiled_for, predictions
from copra.evaluation.answer_cache import AnswerCache
from copra.models.checkpoint import Checkpoint, load_checkpoint
from copra.schema.settings import Precision
from copra.tasks.answers import AnswerKind
from copra.tasks.task import Row, Split
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


class CompiledAnswering(Answering):
    """Settings of a rule that may answer with a compiled model."""

    compile: bool = False
    """If true, the forward pass over one token is compiled."""


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


def answerer(
    checkpoint: Checkpoint,
    settings: CompiledAnswering,
    longest: GenerationSpec,
    rows: Sequence[Row],
    answer_cache: AnswerCache,
) -> Callable[[GenerationSpec], pandas.DataFrame]:
    """Return the function from a generation spec to the predictions of a checkpoint for these rows.

    `longest` is the spec with the most latents, for which the model is compiled if the settings ask for it.
    """
    limit, size = settings.max_new_tokens, settings.batch_size
    compiled = compiled_for(checkpoint, longest, rows, limit, size) if settings.compile else None

    def answer(decoding: GenerationSpec) -> pandas.DataFrame:
        cached = answer_cache.get_or_generate
        return predictions(checkpoint, decoding, rows, limit, settings.answers, size, cached, compiled)

    return answer
