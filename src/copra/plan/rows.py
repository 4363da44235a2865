"""Rows of a task in tokens: prepared ones, a sample of those that will be, or typical lengths.

Only lengths matter, so tokens are 0 where no tokenizer is at hand.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from copra.data.sequences import TokenRow
from copra.schema.base import Base
from copra.tasks.prepare import read_rows
from copra.tasks.task import SPLITS, Preview, Row, Split, Task, sampled
from copra.utils.errors import CopraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_ROWS = 512
"""Number of rows per split that stand for all of them."""
PIECES = re.compile(r"[^\W\d_]+|\d{1,3}|[^\w\s]+|\n")
"""About a token of a published tokenizer that has not been fetched: a word, three digits, or signs."""


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task as tokenized by a base.

    `sizes` are the numbers of rows, `rows` a sample of each split in tokens, `text` its train split's as text
    (empty if not known), `count_tokens` the number of tokens of a text, and `vocabulary` the size of a
    tokenizer that is trained on the rows. `counted` is False if the sizes are a guess; `assumed` lists the
    assumptions.
    """

    sizes: dict[Split, int]
    rows: dict[Split, list[TokenRow]]
    text: list[Row]
    count_tokens: Callable[[str], int]
    vocabulary: int | None
    counted: bool
    assumed: list[str]

    def typical(self) -> dict[str, int]:
        """Return the mean tokens of a prompt, and of a chain of thought with its answer, as in manifests."""
        rows = self.rows["valid"]
        prompt = sum(len(row.question) for row in rows)
        generated = sum(sum(map(len, row.steps)) + len(row.answer) for row in rows)
        return {"prompt": round(prompt / len(rows)), "generated": round(generated / len(rows))}


def preview_of(name: str, task: Task, results: Path) -> Preview:
    """Return what is known of the rows of a task: the prepared ones below `results`, or a sample.

    Raises:
        CopraError: a file cannot be read.
    """
    files = {split: results / "data" / name / f"{split}.parquet" for split in task.splits}
    if not all(file.is_file() for file in files.values()):
        return task.preview(MOST_ROWS)
    rows = {split: read_rows(files[split]) if split in files else [] for split in SPLITS}
    sizes = {split: len(each) for split, each in rows.items()}
    return Preview(sizes, {split: sampled(each, MOST_ROWS) for split, each in rows.items()})


def task_rows(
    name: str,
    task: Task,
    preview: Preview,
    base: Base,
    checkpoint: Path | None,
    tokenizer_rows: list[Row] | None = None,
) -> TaskRows:
    """Return the rows of a task by its preview; `checkpoint` is the folder of the base if it is made.

    `tokenizer_rows` train the tokenizer of a base from scratch (None: the task's own training rows).

    Raises:
        CopraError: a split has no rows.
    """
    assumed = [] if preview.counted else [f"{name}: as many rows as GSM8K has, which is a guess"]
    if preview.rows is None:
        assert preview.tokens is not None, "a preview has rows or the tokens of a typical one"
        row = _row(*preview.tokens)
        assumed.append(f"{name}: rows of typical lengths, until they are fetched")
        rows = {split: [row] for split in SPLITS}
        return TaskRows(preview.sizes, rows, [], _pieces, None, preview.counted, assumed)
    if empty := [split for split in task.splits if not preview.rows[split]]:
        raise CopraError(f"tasks.{name}.{empty[0]}: no row can be used. Check its files and sizes.")
    text, vocabulary = preview.rows["train"], None
    count_tokens: Callable[[str], int] = _pieces
    if checkpoint is None and base.from_scratch is None:
        assumed.append(f"{name}: a token is a word, three digits or signs, until the base is made")
        rows = {split: list(map(_guessed, each)) for split, each in preview.rows.items()}
    else:
        # Their imports take 1 s. AutoTokenizer would import torch.
        from transformers import PreTrainedTokenizerFast

        from copra.data.tokenization import MARKERS, tokenize, train_tokenizer

        if checkpoint is not None:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        else:
            assert base.from_scratch is not None
            tokenizer = train_tokenizer(base.from_scratch, tokenizer_rows or text)
            vocabulary = len(tokenizer) + len(MARKERS)

        # Long texts cause no warning.
        tokenizer.model_max_length = sys.maxsize
        count_tokens = partial(_count, tokenizer)
        rows = {split: tokenize(tokenizer, each) for split, each in preview.rows.items()}
    return TaskRows(preview.sizes, rows, text, count_tokens, vocabulary, preview.counted, assumed)


def _guessed(row: Row) -> TokenRow:
    # A published tokenizer often adds a token before the text; the answer ends in an end token.
    steps = tuple(_pieces(step + "\n") for step in row.steps)
    return _row(1 + _pieces(row.question + "\n"), steps, _pieces("### " + row.answer) + 1)


def _row(question: int, steps: tuple[int, ...], answer: int) -> TokenRow:
    return TokenRow("", [0] * question, [[0] * length for length in steps], [0] * answer)


def _count(tokenizer: "PreTrainedTokenizerFast", text: str) -> int:
    return len(tokenizer.tokenize(text))


def _pieces(text: str) -> int:
    return len(PIECES.findall(text))
