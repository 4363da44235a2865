"""Rows of any file, or of a data set on the Hub, whose columns the config names."""

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from copra.schema.settings import FilePath, Settings, one_or_list
from copra.tasks.answers import MARKER, AnswerKind
from copra.tasks.gsm8k import SIZES, TOKENS
from copra.tasks.hub import load_splits
from copra.tasks.numbers import gold_number
from copra.tasks.task import SPLITS, BadRow, Preview, Row, Split, Task, expand_path, usable
from copra.utils.containers import json_object, read_rows_of_any
from copra.utils.errors import CopraError
from copra.utils.problems import LONGEST_HINT, hint, shown

BREAKS = {"lines": re.compile(r"\n"), "sentences": re.compile(r"\n|(?<=[.!?])\s+")}
"""Where one step of a text ends and the next begins."""
GUESSED = {**SIZES["openai/gsm8k"], "valid": 500}
"""Rows of a data set on the Hub before it is fetched."""
Column = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Columns(Settings):
    """Names of the columns that hold the parts of a row."""

    question: Annotated[
        Annotated[Column, Tag("one")] | Annotated[list[Column], Field(min_length=1), Tag("list")],
        Discriminator(one_or_list),
    ] = "question"
    """Column of the question, or several whose texts are joined by a space."""
    steps: Column | None = None
    """Column of the steps: a list of texts, or one text (null: rows have no steps)."""
    answer: Column = "answer"
    """Column of the answer."""

    @property
    def questions(self) -> list[str]:
        """The columns of the question."""
        return [self.question] if isinstance(self.question, str) else self.question


class Rows(Task):
    """Rows of files or of a data set on the Hub, with a column each for question, steps and answer.

    A file that ends in `.csv` or `.tsv` is a table whose first line names the columns. Any other is JSON
    lines, a JSON array or Parquet, whatever its name. Files may be gzipped (`.gz`). A test split alone is
    enough for `evaluation.tasks`; a task to train on needs all three.
    """

    kind: Literal["rows"] = "rows"
    """Kind of task."""
    hub_name: str | None = None
    """Name of a data set on the Hugging Face Hub (null: files)."""
    hub_subset: str | None = None
    """Configuration (subset) of the data set on the Hub (null: its only one)."""
    hub_revision: str | None = None
    """Branch, tag or commit of the data set on the Hub. A commit pins the rows."""
    train: FilePath | None = None
    """Path of the file of training rows or, with `hub_name`, name of their split on the Hub; environment
    variables such as ${COPRA_DATA} in paths are expanded (null: no training split)."""
    valid: FilePath | None = None
    """The same for validation rows (null: `validation_share` of the training rows, if it is above 0)."""
    test: FilePath | None = None
    """The same for test rows (null: `test_share` of the training rows, if it is above 0)."""
    validation_share: Share = 0.0
    """Share of the rows of `train` that become the validation split. Each row is drawn by the hash of its
    question, so that the draw depends on nothing else."""
    test_share: Share = 0.0
    """Share of the rows of `train` that become the test split, drawn in the same way."""
    columns: Columns = Columns()
    """Names of the columns."""
    split_steps: Literal["lines", "sentences"] = "lines"
    """Where a text in the steps' column is split: at line breaks, or also at white space after `.`, `!` and
    `?`. A list is not split."""
    answer_type: AnswerKind = "number"
    """Comparison of answers. number: as numbers, and a row whose answer is none is bad; text: without regard
    to case, white space and a final full stop."""
    answer_after: str | None = Field(None, min_length=1)
    """Mark in the answer's column after which the answer stands, such as `####` in GSM8K (null: the column
    holds nothing else). If the steps' column is the same, the steps stand before it."""

    @model_validator(mode="after")
    def _sources_agree(self) -> Self:
        given = [split for split in SPLITS if getattr(self, split)]
        if not given:
            raise ValueError(
                "no rows are named; give train, valid or test: the path of a file or, with hub_name, the "
                "name of a split"
            )
        shares = {"validation_share": "valid", "test_share": "test"}
        for key, split in shares.items():
            if getattr(self, key) and split in given:
                raise ValueError(f"{key}: nothing is drawn where {split!r} is given; leave one of them out")
            if getattr(self, key) and "train" not in given:
                raise ValueError(f"{key}: there are no rows to draw from; give them under train")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("test_share: with validation_share it leaves no training row; lower one of them")
        ignored = [key for key in ("hub_subset", "hub_revision") if getattr(self, key)]
        if ignored and not self.hub_name:
            raise ValueError(
                f"{ignored[0]}: only a data set on the Hub has one; give hub_name, or leave it out"
            )
        return self

    @property
    def answers(self) -> AnswerKind:
        return self.answer_type

    @property
    def splits(self) -> tuple[Split, ...]:
        drawn = {"valid": self.validation_share, "test": self.test_share}
        return tuple(split for split in SPLITS if getattr(self, split) or drawn.get(split))

    @property
    def has_steps(self) -> bool:
        return self.columns.steps is not None

    @property
    def hub(self) -> str | None:
        return self.hub_name

    def paths(self) -> dict[Split, str]:
        """Return the configured paths of the local files of splits, not expanded."""
        return {split: path for split in SPLITS if self.is_local and (path := getattr(self, split))}

    def preview(self, most: int) -> Preview:
        """Return the numbers of rows with samples of local files, or those of GSM8K for rows on the Hub."""
        if self.is_local:
            return super().preview(most)
        sizes = {split: GUESSED[split] if split in self.splits else 0 for split in SPLITS}
        limited = {split: min(size, self.limit.get(split, size)) for split, size in sizes.items()}
        question, steps, answer = TOKENS["sentences"]
        return Preview(limited, None, (question, steps if self.has_steps else (), answer), counted=False)

    def concerning(self, split: Split) -> dict[str, Any]:
        """Return the settings that affect the rows of a split, as plain JSON values."""
        settings = super().concerning(split)
        if self.is_local:
            return settings
        # Questions of later splits are left out of this one, and rows may be drawn from those of `train`.
        names = [*SPLITS[SPLITS.index(split) :], *([] if getattr(self, split) else ["train"])]
        return settings | {name: getattr(self, name) for name in names}

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Yield (split, row) for all rows: train, valid, test, in the order of the files.

        Raises:
            CopraError: a file or the Hub cannot be read, or has no such split or column.
        """
        hub = self._hub()
        for split in SPLITS:
            if source := getattr(self, split):
                for row in self._read(split, source, hub):
                    yield self._drawn(row) if split == "train" and isinstance(row, Row) else split, row

    def _drawn(self, row: Row) -> Split:
        """Return the split of a training row."""
        place = int(row.id, 16) / 16 ** len(row.id)
        if place < self.test_share:
            return "test"
        return "valid" if place < self.test_share + self.validation_share else "train"

    def _hub(self) -> Mapping[str, Any]:
        """Return the splits of the data set on the Hub by name; none for files."""
        if self.hub_name is None:
            return {}
        advice = "give the paths of files instead"
        return load_splits(self.hub_name, [self.hub_subset], self.hub_revision, advice)

    def _read(self, split: Split, source: str, hub: Mapping[str, Any]) -> Iterator[Row | BadRow]:
        place, records = self._records(split, source, hub)
        found = list(map(_columns, records))
        known = dict.fromkeys(chain.from_iterable(each for each in found if isinstance(each, dict)))
        needed = [*self.columns.questions, *filter(None, [self.columns.steps]), self.columns.answer]
        if missing := [name for name in needed if known and name not in known]:
            listed = ", ".join(map(str, known))
            raise CopraError(
                f"columns: {place} has no column {shown(missing[0])}. Name one that it has: "
                f"{listed[:LONGEST_HINT]}."
            )
        for number, each in enumerate(found, start=1):
            try:
                yield self._row(each)
            except ValueError as error:
                yield BadRow(place, number, str(error))

    def _records(self, split: Split, source: str, hub: Mapping[str, Any]) -> tuple[str, Any]:
        """Return the name of a source for messages, and its records."""
        if self.hub_name is None:
            path = expand_path(split, source)
            return str(path), read_rows_of_any(split, path)
        if source not in hub:
            raise CopraError(f"{split}: {self.hub_name!r} has no split {source!r}{hint(source, hub)}.")
        return f"{self.hub_name}, split {source}", hub[source]

    def _row(self, record: dict[Any, Any] | ValueError) -> Row:
        """Return the row in one record.

        Raises:
            ValueError: the record cannot be used, with the reason.
        """
        if isinstance(record, ValueError):
            raise record
        if None in record:
            raise ValueError("more fields than the first line has names")
        columns = self.columns
        question = " ".join(_text(record, name).strip() for name in columns.questions).strip()
        answer = _text(record, columns.answer)
        steps = None if columns.steps is None else record.get(columns.steps)
        if self.answer_after is not None:
            before, mark, answer = answer.rpartition(self.answer_after)
            if not mark:
                raise ValueError(f"no {self.answer_after!r} in column {columns.answer!r}")
            steps = before if columns.steps == columns.answer else steps
        return usable(Row(question, tuple(self._steps(steps)), self._answer(answer)))

    def _steps(self, steps: Any) -> list[str]:
        """Return the steps in a value of their column, without line breaks."""
        pieces = BREAKS[self.split_steps].split(steps) if isinstance(steps, str) else steps or []
        if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError(f"column {self.columns.steps!r} holds neither a text nor a list of texts")
        return [step for piece in pieces if (step := " ".join(piece.split()))]

    def _answer(self, answer: str) -> str:
        if self.answer_type == "number":
            return gold_number(answer)
        answer = " ".join(answer.split())
        if not answer:
            raise ValueError("empty answer")
        if MARKER in answer:
            raise ValueError(f"the answer {shown(answer)} has {MARKER!r} in it, which comes before answers")
        return answer


def _columns(record: Any) -> dict[Any, Any] | ValueError:
    """Return the columns of a record, or why it has none."""
    try:
        return json_object(record)
    except ValueError as error:
        return error


def _text(record: Mapping[Any, Any], column: str) -> str:
    """Return the text or number in a column, a number without an exponent."""
    value = record.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"column {column!r} is empty")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"column {column!r} holds {shown(value)}, which is neither text nor a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # Of other floats the shortest decimal form: 1e-05 is 0.00001.
    return value if isinstance(value, str) else f"{Decimal(str(value)):f}"
