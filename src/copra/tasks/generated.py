"""Base classes of tasks that draw their rows at random, or also read the rows of a split from a file."""

import codecs
import random
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Discriminator, Tag, model_validator

from copra.schema.settings import FilePath, Seed
from copra.tasks.task import SPLITS, BadRow, Row, Size, Split, Task, expand_path
from copra.utils.containers import container_of, read_content
from copra.utils.errors import CopraError

ATTEMPTS = 1000


def _number_or_file(value: Any) -> str:
    return "file" if isinstance(value, str) else "number"


Source = Annotated[
    Annotated[Size, Tag("number")] | Annotated[FilePath, Tag("file")], Discriminator(_number_or_file)
]


class DrawnTask(Task):
    """Settings of three drawn splits; a subclass defines how a row is drawn."""

    train: Size = 20000
    """Number of training rows. The number does not affect the other splits."""
    valid: Size = 500
    """Number of validation rows."""
    test: Size = 1000
    """Number of test rows."""
    seed: Seed = 0
    """Seed of the generated rows."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Row | None:
        """Return a random row, or None if this draw is not allowed by the settings."""

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Yield all rows in the order test, valid, train, so that no split depends on a larger one's size.

        No row repeats the question of an earlier row.

        Raises:
            CopraError: the settings allow too few different questions.
        """
        seen: set[str] = set()
        for split in reversed(SPLITS):
            for row in self._rows_of(split, getattr(self, split), seen):
                if isinstance(row, Row):
                    seen.add(row.question)
                yield split, row

    def _rows_of(self, split: Split, size: Any, seen: set[str]) -> Iterator[Row | BadRow]:
        rng = random.Random(f"{self.kind} {self.seed} {split}")
        for index in range(size):
            drawn = (self.draw(rng) for _ in range(ATTEMPTS))
            row = next((row for row in drawn if row is not None and row.question not in seen), None)
            if row is None:
                raise CopraError(
                    f"{self.kind}: no new question was found in {ATTEMPTS} attempts for row {index + 1} of "
                    f"{size} of the {split} split. Ask for fewer rows, or allow more different questions."
                )
            yield row


class GeneratedTask(DrawnTask):
    """Settings of three splits that are drawn or read; a subclass also defines how a file is read."""

    train: Source = 20000  # type: ignore[assignment]
    """Number of training rows to generate, or the path of a file to read; environment variables such as
    ${COPRA_DATA} are expanded. The number does not affect the other splits."""
    valid: Source = 500  # type: ignore[assignment]
    """Number of validation rows to generate, or the path of a file."""
    test: Source = 1000  # type: ignore[assignment]
    """Number of test rows to generate, or the path of a file."""

    @model_validator(mode="after")
    def _every_split_is_meant(self) -> Self:
        silent = [split for split in SPLITS if split not in self.model_fields_set]
        if silent and self.paths():
            raise ValueError(
                f"{', '.join(self.paths())} is read from a file; say of {' and '.join(silent)} too "
                "whether it is a file or how many rows to generate"
            )
        return self

    @abstractmethod
    def records(self, content: bytes) -> list[Any]:
        """Return the records of a file, in order.

        Raises:
            ValueError: the content cannot be split into records, with the reason.
        """

    @abstractmethod
    def read(self, record: Any) -> Row:
        """Return the row in one record of a file.

        Raises:
            ValueError: the record cannot be used, with the reason.
        """

    def paths(self) -> dict[Split, str]:
        """Return the configured paths of the local files of splits, not expanded."""
        return {split: getattr(self, split) for split in SPLITS if isinstance(getattr(self, split), str)}

    def _rows_of(self, split: Split, source: Any, seen: set[str]) -> Iterator[Row | BadRow]:
        if isinstance(source, str):
            return self._read_file(split, expand_path(split, source))
        return super()._rows_of(split, source, seen)

    def _read_file(self, split: Split, path: Path) -> Iterator[Row | BadRow]:
        try:
            content = read_content(split, path)
            if (kind := container_of(content)) is not None:
                raise ValueError(f"it is {kind}")
            records = self.records(content.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError) as error:
            raise CopraError(f"{split}: {path} is no file of the task {self.kind}: {error}.") from None
        for number, record in enumerate(records, start=1):
            try:
                yield self.read(record)
            except ValueError as error:
                yield BadRow(str(path), number, str(error))
