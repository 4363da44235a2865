"""copra score: how important the units of a model are, by every metric of their kind in one pass."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Literal

from copra.files import write_parquet
from copra.verbs.common import Coded, add_settings, add_threads, folder, rows_of, settings_of, use_threads


class ScoreSettings(Coded):
    unit: Literal["layers", "kv_groups"]
    """Which units."""
    rows: int
    """Calibration rows, from the start of the train split."""
    batch_size: int
    """Rows a forward pass."""
    objective: Literal["answer", "cot"]
    """The loss behind gradients."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--model", type=folder, required=True, help="checkpoint to score")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table of scores")


def run(options: Namespace) -> None:
    settings = settings_of(options, ScoreSettings)
    use_threads(options)
    from copra.importance.calibration import calibration_batches, calibration_name
    from copra.importance.heads import head_scores
    from copra.importance.layers import layer_scores
    from copra.importance.scores import score_table
    from copra.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.model)
    rows = rows_of(options.data, "train", settings.rows)
    batches = calibration_batches(checkpoint.tokenizer, rows, settings.objective, settings.batch_size)
    score = layer_scores if settings.unit == "layers" else head_scores
    scored = score(checkpoint.model, batches)
    write_parquet(options.output, score_table(scored, calibration_name(rows, settings.objective), len(rows)))
