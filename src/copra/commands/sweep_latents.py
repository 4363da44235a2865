"""copra sweep-latents: answer questions with other numbers of latents than a checkpoint was trained with."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas

from copra.commands.answering import CompiledAnswering, add_answering, answerer, load_to_answer
from copra.commands.common import rows_of, settings_of
from copra.commands.resources import add_processes
from copra.evaluation.accuracy import accuracy_of
from copra.evaluation.answer_cache import AnswerCache
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import write_parquet
from copra.utils.locking import hold


class SweepLatentsSettings(CompiledAnswering):
    latents: list[int]
    """Numbers of latents; the one that the checkpoint was trained with is added."""


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
        answer = answerer(checkpoint, settings, replace(decoding, latents=max(numbers)), rows, answer_cache)
        table = [
            {"node": settings.node, "latents": number, "trained": number == decoding.latents}
            | {"precision": checkpoint.precision}
            | _summary(answer(replace(decoding, latents=number)))
            for number in numbers
        ]
        if processes.rank():
            return
        write_parquet(options.output, pandas.DataFrame(table), origin)
        answer_cache.delete()


def _summary(table: pandas.DataFrame) -> dict[str, Any]:
    """Return the accuracy and the mean costs of a table of predictions."""
    return accuracy_of(table) | {
        "flops": float(table["flops"].mean()),
        "depth": float(table["depth"].mean()),
    }
