"""A checkpoint in the formats of other programs: its bytes, its answers, and the time that they take."""

import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from operator import eq
from pathlib import Path
from typing import Any

import pandas

from copra.data.sequences import GenerationSpec
from copra.evaluation.accuracy import check_length, extracted
from copra.evaluation.statistics import proportion
from copra.generation.answering import GenerationOptions, generate
from copra.generation.compiled import positions
from copra.generation.executorch import ExecutorchModel
from copra.generation.llama_cpp import GgufModel
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import WEIGHTS, Checkpoint
from copra.models.executorch_file import PROGRAM, positions_of, write_executorch
from copra.models.gguf_file import write_gguf
from copra.schema.conversion import ConversionFormat, missing_packages, program_and_type
from copra.tasks.answers import AnswerKind, answer_value, same_answer
from copra.tasks.task import Row
from copra.utils.errors import CopraError

Ask = Callable[[str], str]
"""From a question to the text that a model writes after it."""


def measure_conversions(
    checkpoint: Checkpoint,
    source: Path,
    rows: Sequence[Row],
    formats: Sequence[ConversionFormat],
    folder: Path,
    *,
    max_new_tokens: int,
    answers: AnswerKind,
    threads: int,
) -> pandas.DataFrame:
    """Write a checkpoint of the folder `source` in each format into `folder`; return a table of measurements.

    One row for the checkpoint itself, format "copra", and one per format: bytes of its weights' file, number
    of questions n, accuracy with its 95% interval (low, high), the share of questions with the same answer as
    the checkpoint's (`same_answers`; to give none is the same as to give none), and seconds per answer, the
    median over questions, which are asked one at a time on the CPU with so many threads. One unmeasured
    question warms up.

    Raises:
        CopraError: the checkpoint has no form in a format, a package is missing, or a question is too long.
    """
    if missing := missing_packages(formats):
        raise CopraError(f"converting to {', '.join(formats)} needs more: pip install {' '.join(missing)}")
    decoding = checkpoint.decoding
    assert decoding is not None, "only models that answer are converted"
    max_new_tokens = decoding.longest_answer(max_new_tokens)
    length = _length(checkpoint, decoding, rows, max_new_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    files = {format: _write(checkpoint, format, folder, length) for format in formats}
    table: list[dict[str, Any]] = []
    own: list[Fraction | str | None] = []
    for format, file in ((None, source / WEIGHTS), *files.items()):
        if format is None:
            ask = _ask_checkpoint(checkpoint, decoding, max_new_tokens)
        else:
            ask = _ask_file(format, file, length, max_new_tokens, threads)
        found, seconds = _ask_all(ask, rows, decoding)
        correct = sum(same_answer(each, row.answer, answers) for each, row in zip(found, rows, strict=True))
        values = [None if each is None else answer_value(each, answers) for each in found]
        own = own or values
        table.append(
            {
                "format": format or "copra",
                "bytes": file.stat().st_size,
                **proportion(correct, len(rows)),
                "same_answers": sum(map(eq, values, own)) / len(rows),
                "seconds_per_answer": seconds,
                "threads": threads,
            }
        )
    return pandas.DataFrame(table).drop(columns="correct")


def _length(checkpoint: Checkpoint, decoding: GenerationSpec, rows: Sequence[Row], limit: int) -> int:
    """Return the number of positions of a converted model's cache: the usual one, or more if needed."""
    asked = prompts_of(checkpoint.tokenizer, rows, decoding)
    check_length(checkpoint, decoding, rows, asked, limit)
    needed = positions(asked.prompts, decoding, (), limit)
    return max(positions_of(checkpoint, None), min(needed, checkpoint.model.config.max_position_embeddings))


def _write(checkpoint: Checkpoint, format: ConversionFormat, folder: Path, length: int) -> Path:
    """Write a checkpoint in a format; return the file of its weights."""
    program, kind = program_and_type(format)
    if program == "gguf":
        file = folder / f"{format}.gguf"
        write_gguf(checkpoint, file, kind)  # type: ignore[arg-type]  # a part of the format's name
        return file
    write_executorch(checkpoint, folder / format, kind, length)  # type: ignore[arg-type]  # as above
    return folder / format / PROGRAM


def _ask_checkpoint(checkpoint: Checkpoint, decoding: GenerationSpec, limit: int) -> Ask:
    """Return the function that asks a checkpoint."""
    options = GenerationOptions(limit, 1)

    def ask(question: str) -> str:
        asked = prompts_of(checkpoint.tokenizer, [Row(question, (), "")], decoding)
        (answer,) = generate(checkpoint, asked, decoding, options)
        return str(checkpoint.tokenizer.decode(answer.tokens, skip_special_tokens=True))

    return ask


def _ask_file(format: ConversionFormat, file: Path, length: int, limit: int, threads: int) -> Ask:
    """Return the function that asks the model in a file of a format."""
    program, _ = program_and_type(format)
    model = GgufModel(file, length, threads) if program == "gguf" else ExecutorchModel(file.parent, threads)
    return lambda question: model.answer(question, limit)


def _ask_all(ask: Ask, rows: Sequence[Row], decoding: GenerationSpec) -> tuple[list[str | None], float]:
    """Return the answer to each question (None: there is none), and the median seconds per question."""
    ask(rows[0].question)
    found, seconds = [], []
    for row in rows:
        start = time.perf_counter()
        text = ask(row.question)
        seconds.append(time.perf_counter() - start)
        found.append(extracted(text, decoding))
    return found, statistics.median(seconds)
