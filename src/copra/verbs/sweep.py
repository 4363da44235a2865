"""copra sweep: answer the questions with other numbers of latents than a checkpoint was trained with."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from copra.errors import CopraError
from copra.files import write_parquet
from copra.verbs.common import Answering, add_settings, add_threads, folder, rows_of, settings_of, use_threads


class SweepSettings(Answering):
    latents: list[int]
    """Numbers of latents; the one that the checkpoint was trained with is added."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--model", type=folder, required=True, help="checkpoint that answers with latents")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table, a row a number")


def run(options: Namespace) -> None:
    settings = settings_of(options, SweepSettings)
    use_threads(options)
    import pandas

    from copra.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.model)
    decoding = checkpoint.decoding
    if decoding is None or not decoding.latents:
        raise CopraError(
            f"{options.model}: this model answers without latents, so their number means nothing."
        )
    rows = rows_of(options.data, settings.split, settings.limit)
    numbers = sorted({*settings.latents, decoding.latents})
    table = [
        {"node": settings.node, "latents": number, "trained": number == decoding.latents}
        | _answered(checkpoint, replace(decoding, latents=number), rows, settings)
        for number in numbers
    ]
    write_parquet(options.output, pandas.DataFrame(table))


def _answered(checkpoint: Any, decoding: Any, rows: list, settings: SweepSettings) -> dict[str, Any]:
    from copra.evaluation.accuracy import accuracy_of, predictions

    table = predictions(
        checkpoint, decoding, rows, settings.max_new_tokens, settings.answers, settings.batch_size
    )
    return accuracy_of(table) | {
        "flops": float(table["flops"].mean()),
        "depth": float(table["depth"].mean()),
    }
