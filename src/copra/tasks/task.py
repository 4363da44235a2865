"""The interface of a task: rows of (question, steps, answer) in three splits."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from copra.schema.settings import MOST_ROWS, Settings
from copra.tasks.answers import AnswerKind
from copra.utils.errors import CopraError
from copra.utils.problems import shown_path

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Size = Annotated[int, Field(gt=0, le=MOST_ROWS)]
"""A number of rows."""


@dataclass(frozen=True)
class Row:
    """One example. `steps` are lines of reasoning without line breaks; `answer` is the bare answer."""

    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def id(self) -> str:
        """An identifier that depends on the question alone, so that splits can be compared."""
        return question_id(self.question)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, with its place and the reason."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


@dataclass(frozen=True)
class Preview:
    """The rows of a task before they are prepared, as far as they are known without a network.

    `sizes` are the numbers of rows before repeated ones are left out; without `counted` they are a guess.
    `rows` is a sample of each split. Without one, for rows on the Hub, `tokens` are the typical lengths of a
    question, of each step and of an answer.
    """

    sizes: dict[Split, int]
    rows: dict[Split, list[Row]] | None
    tokens: tuple[int, tuple[int, ...], int] | None = None
    counted: bool = True


class Task(Settings):
    """Settings of a task; a subclass adds its own keys and overrides `rows`, and `paths` if it reads files.

    To add a task: one file with a subclass, one line in `copra/tasks/__init__.py`, and a test. Other packages
    add tasks by entry points (`copra.utils.plugins`).
    """

    kind: str
    """Kind of task."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """Handling of rows that cannot be used. stop: list them all in an error; drop: leave them out and record
    them."""
    limit: dict[Split, Size] = Field(default_factory=dict)
    """Maximum number of rows per split, from its start, for quick trials. A split without an entry is not
    limited. Bad and repeated rows, and rows in a later split, are removed before."""
    max_rows_without_steps: float = Field(0.1, ge=0, le=1)
    """Maximum fraction of training or validation rows without steps, rounded up to a row. GSM8K has 95 of
    7,473 training rows without steps (0.013). With many more, CoT would only learn to answer at once."""

    worked_examples: ClassVar[Path | None] = None
    """Path of JSON lines with `question`, `steps` (sentences) and `answer`, as examples for prompts."""

    @property
    def answers(self) -> AnswerKind:
        """Comparison of two answers: as numbers, or as normalized text."""
        return "number"

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have rows. A task to train on needs all three, a test set only one."""
        return SPLITS

    @property
    def has_steps(self) -> bool:
        """False if no row has steps, so that nothing can learn from them."""
        return True

    @property
    def steps_advice(self) -> str:
        """A sentence of advice for an error about too many rows without steps."""
        return "Give rows with steps."

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing among the possible answers; None if a question does not limit them."""
        return None

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Yield (split, row) for all rows, in a fixed order."""
        raise TypeError(f"task {self.kind!r} does not say what its rows are")

    def preview(self, most: int) -> Preview:
        """Return the numbers of rows, and samples of at most `most` rows, more of which are not generated."""
        generated = {split: size for split in SPLITS if isinstance(size := getattr(self, split, None), int)}
        few = self.model_copy(update={split: min(most, size) for split, size in generated.items()})
        found: dict[Split, list[Row]] = {split: [] for split in SPLITS}
        for split, row in few.rows():
            if isinstance(row, Row):
                found[split].append(row)
        sizes = {split: generated.get(split, len(found[split])) for split in SPLITS}
        limited = {split: min(size, self.limit.get(split, size)) for split, size in sizes.items()}
        return Preview(limited, {split: sampled(rows, most) for split, rows in found.items()})

    def paths(self) -> dict[Split, str]:
        """Return the configured paths of the local files of splits, not expanded."""
        return {}

    def files(self) -> dict[Split, Path]:
        """Return the local files of `paths`, with environment variables expanded.

        Raises:
            CopraError: a variable is not set.
        """
        return {split: expand_path(split, path) for split, path in self.paths().items()}

    @property
    def hub(self) -> str | None:
        """The data set on the Hub that rows come from, which are not known before they are downloaded.

        None for rows that are generated, or read from local files.
        """
        return None

    @property
    def is_local(self) -> bool:
        """True if the rows are available without a network."""
        return self.hub is None

    def concerning(self, split: Split) -> dict[str, Any]:
        """Return the settings that affect the rows of a split, as plain JSON values.

        `max_rows_without_steps` is left out: it refuses rows, but does not change them.
        """
        others = [*(name for name in SPLITS if name != split), "max_rows_without_steps"]
        settings = {key: value for key, value in self.canonical().items() if key not in others}
        return settings | {"limit": {key: rows for key, rows in self.limit.items() if key == split}}


def usable(row: Row) -> Row:
    """Return a row that was read from a file, unchanged.

    Raises:
        ValueError: it has no question, or a text that no file can hold.
    """
    if not row.question.strip():
        raise ValueError("empty question")
    try:
        "\n".join((row.question, *row.steps, row.answer)).encode()
    except UnicodeEncodeError:
        raise ValueError("text with half of a surrogate pair, which is no character") from None
    return row


def sampled(rows: Sequence[Row], most: int) -> list[Row]:
    """Return all rows, or `most` random ones if there are more: rows may repeat in a cycle."""
    return list(rows) if len(rows) <= most else Random(0).sample(rows, most)


def read_worked_examples(path: Path) -> list[Row]:
    """Return the rows of a file of worked examples, in its order."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(each["question"], tuple(each["steps"]), each["answer"]) for each in records]


def question_id(question: str) -> str:
    """Return 16 hexadecimal digits of the sha256 of the question with white space collapsed."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]


def expand_path(key: str, path: str) -> Path:
    """Return a configured path with `~` and environment variables such as ${COPRA_DATA} expanded.

    Raises:
        CopraError: a variable is unset or empty; the message names it and the config key.
    """
    for braced, bare in re.findall(r"\$\{(\w+)\}|\$(\w+)", path):
        name = braced or bare
        if not os.environ.get(name):
            raise CopraError(
                f"{key}: {shown_path(repr(path))} needs the environment variable {name}, which is not set. "
                f"Set it (export {name}=...) or write the whole path."
            )
    return Path(os.path.expandvars(path)).expanduser()
