"""Typical rows of a task, in tokens: from its prepared data, newly drawn, or assumed.

Only their lengths matter, so every token is 0 here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Literal, TypeVar

from copra.data.sequences import TokenRow
from copra.schema.base import Base
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.task import SPLITS, Row, Split, Task, expand_path, read_worked_examples
from copra.utils.containers import count_records
from copra.utils.errors import CopraError
from copra.utils.files import read_json

READ, DRAWN = 8192, 128
"""Largest number of rows per split to read: of prepared data, and of newly drawn rows."""
KEPT = 64
"""Number of rows, of all lengths, that represent a split."""
SPOKEN = 1024
"""Number of training rows in which different words are counted."""

R = TypeVar("R")

Tokenizer = Literal["words", "bpe", "trained"]
"""The two tokenizers that copra trains, or the one that a published base has."""

PIECES: dict[Tokenizer, str] = {
    "words": r"\n|\d+|[^\W\d_]+|#+|<<|>>|[^\w\s]|_",
    "bpe": r"\n|\d|[^\W\d_]{1,4}|[^\w\s]+|_",
    "trained": r"\n|\d{1,3}|[^\W\d_]+|[^\w\s]+|_",
}
"""Pattern of a token by tokenizer. The first is exact, see `copra.data.tokenization`; the others are rules of
thumb, which the record of a base corrects once the base is made."""
GSM8K = (
    (24, (10, 8), (13, 14)),
    (33, (8, 8), (30, 20)),
    (38, (8, 8), (17, 16)),
    (44, (6, 8), (21, 21)),
    (46, (8, 8), (29, 20)),
    (50, (8, 8), (35, 23)),
    (52, (10, 8), (16, 22)),
    (41, (10, 8, 8, 8), (14, 18, 21, 16)),
    (51, (9, 10, 9), (18, 26, 43)),
    (57, (8, 10, 8), (28, 25, 22)),
    (62, (8, 10, 8), (12, 17, 14)),
    (56, (10, 8, 12, 8), (19, 24, 21, 18)),
    (80, (12, 8), (7, 7, 7, 7, 19, 17)),
    (59, (9, 10, 10, 10, 11), (27, 34, 33, 23, 32)),
    (65, (8, 8, 8, 8, 8, 8, 8), (12, 13, 15, 15, 14, 14, 18)),
    (115, (8, 10, 8), (24, 24, 18, 17)),
)
"""Every 467th of GSM8K's 7,473 training rows in order of length: pieces of the question, of each equation, of
each sentence. Their means are 55, 26 and 66; those of all rows are 54, 27 and 67."""
GSM8K_ANSWER = 3
GSM8K_BPE = {"prompt": 73, "generated": 43}
"""Tokens of a typical answer with equations, with a byte-level BPE of 2,048 tokens (measured)."""

PUBLISHED: dict[str, dict[Split, int]] = {
    "gsm8k": {"train": 7473, "valid": 0, "test": 1319},
    "prosqa": {"train": 17886, "valid": 300, "test": 500},
    "multiplication": {"train": 808000, "valid": 1000, "test": 1000},
}
"""Rows of published files, for files that are missing (arXiv 2110.14168, 2412.06769, 2405.14838)."""
HUB: dict[str, dict[Split, int]] = {
    "openai/gsm8k": PUBLISHED["gsm8k"],
    "whynlp/gsm8k-aug": {"train": 385620, "valid": 500, "test": 1319},
    "zen-e/gsm8k-aug": {"train": 385620, "valid": 0, "test": 1319},
}
"""Rows of data sets on the Hub, by lowercase name."""


@dataclass(frozen=True)
class TaskRows:
    """The number of rows of each split of a task, and a sample of them in tokens.

    `words` is the number of different words in the sample of train, if that sets the vocabulary of the base;
    `assumed` lists assumptions in place of prepared data.
    """

    sizes: dict[Split, int]
    rows: dict[Split, list[TokenRow]]
    words: int | None
    assumed: tuple[str, ...]

    def typical(self) -> dict[str, int]:
        """Return the token counts of a typical answer, as a base's manifest would record them."""
        return {name: round(mean) for name, mean in _typical(self.rows["valid"]).items()}


def tokenizer_of(base: Base) -> Tokenizer:
    """Return the kind of tokenizer of a base."""
    return "trained" if base.from_scratch is None else base.from_scratch.tokenizer


def task_rows(name: str, task: Task, base: Base, made: Path | None, results: Path) -> TaskRows:
    """Return the rows of a task as tokenized by a base; `made` is the manifest of that base, or None."""
    kind = tokenizer_of(base)
    texts, sizes, assumed = _texts(name, task, results)
    words = None
    if texts is None:
        rows = dict.fromkeys(SPLITS, _published_rows(task))
    else:
        if kind == "words" and made is None:
            words = len({piece for row in texts["train"][:SPOKEN] for piece in _pieces(row)})
        rows = {
            split: [_tokens(row, kind) for row in thinned(texts[split], KEPT, _letters)] for split in SPLITS
        }
    typical = read_json(made)["typical_answer"] if made is not None else None
    if typical is None and kind == "bpe" and texts is None:
        typical = GSM8K_BPE
    if typical is not None and kind != "words":
        rows = _scaled(rows, typical)
    if made is None and kind != "words":
        assumed.append(f"{name}: tokens guessed from words, numbers and signs, until the base is made")
    return TaskRows(
        sizes, {split: _shuffled(sample) for split, sample in rows.items()}, words, tuple(assumed)
    )


def worked_rows(file: Path, base: Base) -> list[TokenRow]:
    """Return a task's worked examples in tokens of a base, guessed from words, numbers and signs."""
    return [_tokens(row, tokenizer_of(base)) for row in read_worked_examples(file)]


def thinned(rows: Sequence[R], number: int, length: Callable[[R], int]) -> list[R]:
    """Return `number` rows, evenly spaced in order of length, or all rows if there are fewer."""
    ordered = sorted(rows, key=length)
    if len(ordered) <= number:
        return ordered
    return [ordered[int((index + 0.5) * len(ordered) / number)] for index in range(number)]


def tokens_of(row: TokenRow) -> int:
    """Return the number of tokens of a whole row."""
    return len(row.question) + sum(map(len, row.steps)) + len(row.answer)


def _texts(
    name: str, task: Task, results: Path
) -> tuple[dict[Split, list[Row]] | None, dict[Split, int], list[str]]:
    """Return a sample of each split (None: there is none), the sizes, and the assumptions."""
    folder = results / "data" / name
    if all((folder / f"{split}.parquet").is_file() for split in SPLITS):
        read = {split: _read(folder / f"{split}.parquet") for split in SPLITS}
        return (
            {split: rows for split, (rows, _) in read.items()},
            {split: size for split, (_, size) in read.items()},
            [],
        )
    sizes, assumed = _sizes(name, task)
    if isinstance(task, Gsm8k):
        return None, sizes, [*assumed, f"{name}: rows as long as those of GSM8K's training split"]
    drawn = task.model_copy(update={split: min(DRAWN, sizes[split]) for split in SPLITS} | {"limit": {}})
    texts: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for split, row in drawn.rows():
        texts[split].append(row)
    return texts, sizes, [*assumed, f"{name}: rows as long as {DRAWN} drawn ones of each split"]


def _read(file: Path) -> tuple[list[Row], int]:
    """Return the first rows of a prepared split, and the split's size."""
    from pyarrow import parquet

    # Not read_table, which imports much more.
    with parquet.ParquetFile(file) as table:
        batches = table.iter_batches(READ, columns=["question", "steps", "answer"])
        rows = next(batches).to_pylist()
        return [
            Row(row["question"], tuple(row["steps"]), row["answer"]) for row in rows
        ], table.metadata.num_rows


def has_known_size(task: Task) -> bool:
    """True if the split sizes are known before preparation: false for Hub data sets not in `HUB`."""
    return not (isinstance(task, Gsm8k) and task.source == "hub" and task.hub_name.lower() not in HUB)


def _sizes(name: str, task: Task) -> tuple[dict[Split, int], list[str]]:
    """Return the sizes of a task's splits before bad or duplicate rows are dropped, and the assumptions."""
    sizes, assumed = {}, []
    published = PUBLISHED.get(task.kind, {})
    if isinstance(task, Gsm8k) and task.source == "hub":
        published = HUB.get(task.hub_name.lower(), published)
        if not has_known_size(task):
            assumed.append(f"{name}: as many rows as GSM8K has; those of {task.hub_name} are not known")
    for split in SPLITS:
        source = getattr(task, split)
        if isinstance(source, int):
            sizes[split] = source
        elif source is None:
            sizes[split] = published[split]
        else:
            try:
                sizes[split] = count_records(expand_path(split, source))
            except CopraError:
                sizes[split] = PUBLISHED[task.kind][split]
                assumed.append(f"{name}: {sizes[split]:,} rows in {split}, as published; no {source} yet")
    if isinstance(task, Gsm8k) and not sizes["valid"]:
        sizes["valid"] = task.validation_rows
        sizes["train"] = max(1, sizes["train"] - task.validation_rows)
    return {split: min(size, task.limit.get(split, size)) for split, size in sizes.items()}, assumed


def _tokens(row: Row, kind: Tokenizer) -> TokenRow:
    count = _counter(kind)
    # A published tokenizer adds a begin token; the answer ends in an end token.
    begin = 1 if kind == "trained" else 0
    return TokenRow(
        id=row.id,
        question=[0] * (begin + count(row.question + "\n")),
        steps=[[0] * count(step + "\n") for step in row.steps],
        answer=[0] * (count("### " + row.answer) + 1),
    )


def _counter(kind: Tokenizer) -> Callable[[str], int]:
    pattern = re.compile(PIECES[kind])
    return lambda text: len(pattern.findall(text))


def _pieces(row: Row) -> list[str]:
    return re.findall(PIECES["words"], "\n".join([row.question, *row.steps, "### " + row.answer]))


def _published_rows(task: Gsm8k) -> list[TokenRow]:
    return [
        TokenRow(
            id=str(number),
            question=[0] * (question + 1),
            steps=[[0] * length for length in (equations if task.steps == "equations" else sentences)],
            answer=[0] * GSM8K_ANSWER,
        )
        for number, (question, equations, sentences) in enumerate(GSM8K)
    ]


def _scaled(
    rows: Mapping[Split, Sequence[TokenRow]], typical: Mapping[str, int]
) -> dict[Split, list[TokenRow]]:
    """Return the rows scaled to the mean lengths that a base's manifest records for the validation split."""
    guessed = _typical(rows["valid"])
    prompt, generated = (typical[name] / guessed[name] for name in ("prompt", "generated"))

    def scaled(row: TokenRow) -> TokenRow:
        # Ends are rounded, not lengths: the lengths of short steps would all be rounded in one direction.
        ends = accumulate(map(len, [*row.steps, row.answer]))
        lengths = [b - a for a, b in pairwise([0, *(round(end * generated) for end in ends)])]
        *steps, answer = ([0] * length for length in lengths)
        question = [0] * round(len(row.question) * prompt)
        return replace(row, question=question, steps=steps, answer=answer or [0])

    return {split: list(map(scaled, sample)) for split, sample in rows.items()}


def _shuffled(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return the rows in random order, since layouts may change over the steps of a training."""
    shuffled = list(rows)
    Random(0).shuffle(shuffled)
    return shuffled


def _letters(row: Row) -> int:
    return len(row.question) + sum(map(len, row.steps)) + len(row.answer)


def _typical(rows: Sequence[TokenRow]) -> dict[str, float]:
    """Return the mean tokens of a prompt, and of a chain of thought with its answer."""
    prompt = sum(len(row.question) for row in rows)
    generated = sum(sum(map(len, row.steps)) + len(row.answer) for row in rows)
    return {"prompt": prompt / len(rows), "generated": generated / len(rows)}
