"""copra sweep-latents: answer questions with other numbers of latents than a checkpoint was trained with."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas

from copra.commands.answering import Answering, add_answering, load_to_answer
from copra.commands.common import rows_of, settings_of
from copra.commands.resources import add_processes
from copra.evaluation.accuracy import accuracy_of, compiled_for, predictions
from copra.evaluation.answer_cache import AnswerCache
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import write_parquet
from copra.utils.locking import hold


class SweepLatentsSettings(Answering):
    latents: list[int]
    """Numbers of latents; the one that the checkpoint was trained with is added."""
    compile: bool = False
    """Compile the pass over one token."""


def arguments(parser: ArgumentParser) -> None:
    add_answering(
        parser, "checkpoint that answers with latents", "folder for answers of unfinished evaluations"
    )
    add_processes(parser)
    parser.add_argument(
        "--output", type=Path, required=True, help="Parquet table, one row per number of latents"
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, SweepLatentsSettings)
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split)
    decoding = checkpoint.decoding
    if decoding is None or not decoding.latents:
        raise CopraError(
            f"{options.model}: this model answers without latents, so their number means nothing."
        )
    rows = rows_of(options.data, settings.split, settings.limit)
    numbers = sorted({*settings.latents, decoding.latents})
    questions = options.data / f"{settings.split}.parquet"
    answer_cache = AnswerCache(
        options.state, checkpoint, settings.canonical(), questions, len(numbers) * len(rows)
    )
    with hold(answer_cache.state, settings.node, options.output) as made:
        if made:
            return
        compiled = None
        if settings.compile:
            longest = replace(decoding, latents=max(numbers))
            compiled = compiled_for(checkpoint, longest, rows, settings.max_new_tokens, settings.batch_size)
        table = [
            {"node": settings.node, "latents": number, "trained": number == decoding.latents}
            | {"precision": checkpoint.precision}
            | _answered(checkpoint, replace(decoding, latents=number), rows, settings, answer_cache, compiled)
            for number in numbers
        ]
        if processes.rank():
            return
        write_parquet(options.output, pandas.DataFrame(table), origin)
        answer_cache.delete()


def _answered(
    checkpoint: Any,
    decoding: Any,
    rows: list,
    settings: SweepLatentsSettings,
    answer_cache: Any,
    compiled: Any,
) -> dict[str, Any]:
    table = predictions(
        checkpoint,
        decoding,
        rows,
        settings.max_new_tokens,
        settings.answers,
        settings.batch_size,
        answer_cache.get_or_generate,
        compiled,
    )
    return accuracy_of(table) | {
        "flops": float(table["flops"].mean()),
        "depth": float(table["depth"].mean()),
    }
