"""What a task is: rows of (question, steps, answer), in three splits, and a rule of equality."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from copra.schema.settings import MOST_ROWS, Settings
from copra.utils.errors import CopraError
from copra.utils.problems import shown_path

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
    max_rows_without_steps: float = Field(0.1, ge=0, le=1)
    """The largest share of training or validation rows that may have no steps, rounded up to a row. 95 of
    GSM8K's 7,473 training rows have none, 0.013; of many more, CoT would only learn to answer at once."""

    answers: ClassVar[Literal["number", "text"]] = "number"
    """How two answers are compared: as numbers, or as normalized text."""
    worked_examples: ClassVar[Path | None] = None
    """JSON lines with `question`, `steps` (sentences) and `answer`, which prompts may show as examples."""

    @property
    def steps_advice(self) -> str:
        """What to do where too many rows have no steps, as a sentence."""
        return "Give rows with steps."

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Every row with the split that it belongs to, in a fixed order."""
        raise TypeError(f"task {self.kind!r} does not say what its rows are")

    def paths(self) -> dict[Split, str]:
        """Local files that rows of splits are read from, as the settings have them."""
        return {}

    def files(self) -> dict[Split, Path]:
        """The local files of `paths`, variables filled in.

        Raises:
            CopraError: a variable is not set.
        """
        return {split: expand_path(split, path) for split, path in self.paths().items()}

    @property
    def is_local(self) -> bool:
        """True if the rows can be known without a network: they are generated, or read from local files."""
        return True

    def concerning(self, split: Split) -> dict[str, Any]:
        """The settings, as plain JSON values, without those of other splits alone, and without what changes
        no row but refuses them."""
        others = [*(name for name in SPLITS if name != split), "max_rows_without_steps"]
        settings = {key: value for key, value in self.canonical().items() if key not in others}
        return settings | {"limit": {key: rows for key, rows in self.limit.items() if key == split}}


def read_worked_examples(path: Path) -> list[Row]:
    """The rows of a file of worked examples that a task names, in its order."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(each["question"], tuple(each["steps"]), each["answer"]) for each in records]


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
                f"{key}: {shown_path(repr(path))} needs the environment variable {name}, which is not set. "
                f"Set it (export {name}=...) or write the whole path."
            )
    return Path(os.path.expandvars(path)).expanduser()
