"""copra latency: seconds an answer of several checkpoints, measured beside each other."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.common import (
    Coded,
    add_settings,
    add_threads,
    folder,
    made_by,
    rows_of,
    settings_of,
    summary_of,
    use_threads,
)
from copra.schema.settings import Precision
from copra.utils.files import MANIFEST, write_parquet


class LatencySettings(Coded):
    questions: int
    """Questions answered one by one."""
    batch_size: int
    """Questions in the full batch."""
    repetitions: int
    """Runs of which the median is taken."""
    forced_tokens: int
    """Generated tokens where the length is forced."""
    max_new_tokens: int
    """Longest answer where it is not."""
    compile: bool = False
    """Measure compiled code."""
    precision: Precision = "float32"
    """The precision to compute in, where the device has it."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--models", type=folder, nargs="+", required=True, help="checkpoints to measure")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table")


def run(options: Namespace) -> None:
    settings = settings_of(options, LatencySettings)
    use_threads(options, settings.precision)
    import pandas

    from copra.evaluation.latency import measure
    from copra.models.checkpoint import load_checkpoint

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
