"""copra convert: convert a checkpoint to the formats of other programs, and ask it questions in each."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from copra.commands.common import Coded, add_settings, folder, made_by, rows_of, settings_of, summary_of
from copra.evaluation.conversions import measure_conversions
from copra.models.checkpoint import load_checkpoint
from copra.schema.conversion import ConversionFormat
from copra.tasks.answers import AnswerKind
from copra.tasks.task import Split
from copra.utils.files import MANIFEST, write_parquet


class ConvertSettings(Coded):
    node: str
    """Name of the model node."""
    formats: list[ConversionFormat]
    """Formats to write."""
    split: Split
    """Split whose questions are asked."""
    limit: int
    """Number of questions, from the start of the split."""
    max_new_tokens: int
    """Maximum number of generated tokens per answer."""
    answers: AnswerKind
    """Comparison of answers: as numbers or as texts."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument("--model", type=folder, required=True, help="checkpoint to convert")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the other programs' files")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table to write")


def run(options: Namespace) -> None:
    settings = settings_of(options, ConvertSettings)
    torch.set_num_threads(options.threads)
    # The other programs compute in single precision on the CPU, so that the checkpoint does too.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    checkpoint = load_checkpoint(options.model, to_answer=True)
    checkpoint.model.float()
    rows = rows_of(options.data, settings.split, settings.limit)
    table = measure_conversions(
        checkpoint,
        options.model,
        rows,
        settings.formats,
        options.folder,
        max_new_tokens=settings.max_new_tokens,
        answers=settings.answers,
        threads=options.threads,
    )
    made_of = [options.model / MANIFEST, summary_of(options.data, settings.split)]
    write_parquet(options.output, table.assign(node=settings.node), made_by(options, *made_of))
