"""copra latency: measure seconds per answer of several checkpoints in one run."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pandas

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
from copra.evaluation.latency import measure
from copra.models.checkpoint import load_checkpoint
from copra.schema.settings import Precision
from copra.utils.files import MANIFEST, write_parquet


class LatencySettings(Coded):
    questions: int
    """Number of questions answered one at a time."""
    batch_size: int
    """Number of questions in the full batch."""
    repetitions: int
    """Number of timed runs, of which the median is reported."""
    forced_tokens: int
    """Number of generated tokens per answer in runs with forced length."""
    max_new_tokens: int
    """Maximum number of generated tokens per answer in runs with natural length."""
    compile: bool = False
    """If true, compiled code is timed."""
    precision: Precision = "float32"
    """Precision of the computation, if the device supports it."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--models", type=folder, nargs="+", required=True, help="checkpoints to measure")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table to write")


def run(options: Namespace) -> None:
    settings = settings_of(options, LatencySettings)
    set_up_torch(options, settings.precision)
    rows = rows_of(options.data, "test", max(settings.questions, settings.batch_size))
    table = []
    for model in options.models:
        table += measure(
            load_checkpoint(model, settings.precision, to_answer=True),
            rows,
            max_new_tokens=settings.max_new_tokens,
            forced_tokens=settings.forced_tokens,
            batch_size=settings.batch_size,
            questions=settings.questions,
            repetitions=settings.repetitions,
            compile=settings.compile,
        )
    made_of = [*(model / MANIFEST for model in options.models), summary_of(options.data, "test")]
    write_parquet(options.output, pandas.DataFrame(table), made_by(options, *made_of))
