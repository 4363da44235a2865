"""What a task is: rows of (question, steps, answer), in three splits, and a rule of equality."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from copra.errors import CopraError
from copra.settings import MOST_ROWS, Settings

SPLITS = ("train", "valid", "test")
Split = Literal["train", "valid", "test"]
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
        """A name that depends on the question alone, so that splits can be compared."""
        return question_id(self.question)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it is and why."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


class Task(Settings):
    """The settings of a task; a subclass adds its own keys and the two methods below.

    To add a task: one file with a subclass, one line in `copra/tasks/__init__.py`, and a test.
    """

    kind: str
    """Which task this is."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """What to do when rows cannot be used: stop and list every one, or drop and record them."""
    limit: dict[Split, Size] = Field(default_factory=dict)
    """Keep only the first so many rows of a split, for quick trials; a split not named stays whole.
    Counted after rows that are bad, repeated or in a later split are out."""

    answers: ClassVar[Literal["number", "text"]] = "number"
    """How two answers are compared: as numbers, or as normalised text."""

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Every row with the split that it belongs to, in a fixed order."""
        raise TypeError(f"task {self.kind!r} does not say what its rows are")

    def files(self) -> list[str]:
        """Local files that the rows are read from: the workflow watches them."""
        return []


def question_id(question: str) -> str:
    """16 hexadecimal digits of the sha256 of the question, white space collapsed."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]


def expand_path(key: str, path: str) -> Path:
    """A configured path with `~` and environment variables such as ${COPRA_DATA} filled in.

    Raises:
        CopraError: a variable is unset or empty, naming it and the config key.
    """
    for braced, bare in re.findall(r"\$\{(\w+)\}|\$(\w+)", path):
        name = braced or bare
        if not os.environ.get(name):
            raise CopraError(
                f"{key}: {path!r} needs the environment variable {name}, which is not set. "
                f"Set it (export {name}=...) or write the whole path."
            )
    return Path(os.path.expandvars(path)).expanduser()
