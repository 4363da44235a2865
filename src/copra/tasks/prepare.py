"""Preparation of a task's tables, one per split: rows are checked, and no question is in two splits."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copra.tasks.answers import AnswerKind, same_answer
from copra.tasks.leaks import question_keys, without_questions
from copra.tasks.task import SPLITS, BadRow, Row, Split, Task
from copra.utils import files
from copra.utils.errors import CopraError

if TYPE_CHECKING:
    import pandas

LISTED_BAD_ROWS = 50


@dataclass(frozen=True)
class Prepared:
    """One prepared split of a task, with the record of its preparation (see `data_record`)."""

    split: Split
    rows: list[Row]
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        """The sha256 of all rows in their order, 64 hexadecimal digits."""
        return self.record["rows_sha256"]

    def summary(self) -> str:
        """Return one line with the number of rows, and of rows left out per reason."""
        record = self.record
        left_out = {
            "bad": len(record["dropped"]) - record["conflicts"],
            "conflicting duplicates": record["conflicts"],
            "duplicates": record["duplicates"],
            "overlaps with a later split": record["overlap"],
            "over the limit": record["over_limit"],
        }
        counts = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        return (
            f"{self.split}: {record['rows']:,} rows, without steps {record['without_steps']:,}; "
            f"left out: {counts}"
        )


def prepare(task: Task, folder: Path) -> None:
    """Write all splits of a task by `write_split`.

    Raises:
        CopraError: as in `prepared` and `write_split`.
    """
    for split in prepared(task).values():
        write_split(split, folder)


def prepared(task: Task) -> dict[Split, Prepared]:
    """Return the splits of a task, in memory.

    A repeated question within a split is left out; with another answer it is a bad row, and `bad_rows: drop`
    keeps the first. A question that also occurs in a split nearer to the test (by `copra.tasks.leaks`) is
    left out too: test questions are removed from valid and train, valid questions from train.

    Raises:
        CopraError: rows cannot be used and `bad_rows` is "stop" (one error lists them); a split
            has no rows, or too many without steps; a source cannot be read.
    """
    found, dropped = _sorted_out(task)
    first: dict[Split, list[Row]] = {}
    conflicts: dict[Split, list[BadRow]] = {}
    for split in SPLITS:
        first[split], conflicts[split] = _first_of_each(split, found[split], task.answers)
        dropped[split] += conflicts[split]
    bad = [row for split in SPLITS for row in dropped[split]]
    if bad and task.bad_rows == "stop":
        raise CopraError(_listing(bad))
    left = _without_leaks(first)
    tables = {split: left[split][: task.limit.get(split)] for split in task.splits}
    for split, rows in tables.items():
        if not rows:
            raise CopraError(_empty(split, len(bad), len(first[split]) - len(left[split])))
        if split != "test" and task.has_steps:
            _check_steps(task, split, rows)
    return {
        split: Prepared(
            split,
            rows,
            {
                "task": task.kind,
                "settings": task.concerning(split),
                "rows_sha256": _digest(rows),
                "rows": len(rows),
                "without_steps": _without_steps(rows),
                "dropped": [asdict(row) for row in dropped[split]],
                "conflicts": len(conflicts[split]),
                "duplicates": len(found[split]) - len(first[split]) - len(conflicts[split]),
                "overlap": len(first[split]) - len(left[split]),
                "over_limit": len(left[split]) - len(rows),
            },
        )
        for split, rows in tables.items()
    }


def write_split(prepared: Prepared, folder: Path, more: dict[str, Any] | None = None) -> None:
    """Write a split as `folder`/{split}.parquet with columns id, question, steps (list), answer.

    The record is written into the table and, with the table's sha256 and `more`, into `folder`/{split}.json,
    the small file that represents the table. Both are complete or absent; files with the same content are not
    rewritten.

    Raises:
        CopraError: the folder cannot be written.
    """
    table = Path(folder) / f"{prepared.split}.parquet"
    summary = {**prepared.record, **(more or {})}
    files.write_sealed_parquet(table, _frame(prepared.rows), summary, prepared.record)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of one split, in order.

    Raises:
        CopraError: the table or the small file beside it is missing, or differs from what `write_split`
            wrote.
    """
    frame = files.read_sealed_parquet(path)
    return [
        Row(question, tuple(steps), answer)
        for question, steps, answer in zip(frame["question"], frame["steps"], frame["answer"], strict=True)
    ]


def data_record(path: Path) -> dict[str, Any]:
    """Return the record of the preparation of the table at `path`.

    Keys: task (its kind), settings (those that affect this split), rows_sha256 (`Prepared.digest`), rows
    (their number), without_steps (number of rows without steps), dropped (bad rows of this split: file, row,
    reason), conflicts (number of dropped rows that repeat a question of the split with another answer),
    duplicates (number of rows that repeat a question of the split), overlap (number of rows whose question is
    in a later split), over_limit (number of rows left out because of `limit`). All values are of this split
    alone, so that a change of another split does not change them.
    """
    return files.parquet_record(path)


def _sorted_out(task: Task) -> tuple[dict[Split, list[Row]], dict[Split, list[BadRow]]]:
    """Return the usable rows and the bad rows of each split."""
    found: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    bad: dict[Split, list[BadRow]] = {split: [] for split in SPLITS}
    for split, row in task.rows():
        if isinstance(row, BadRow):
            bad[split].append(row)
        else:
            found[split].append(row)
    return found, bad


def _digest(rows: Iterable[Row]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(files.canonical_json([row.question, row.steps, row.answer]).encode() + b"\n")
    return total.hexdigest()


def _first_of_each(split: Split, rows: Iterable[Row], answers: AnswerKind) -> tuple[list[Row], list[BadRow]]:
    """Return the first row of each question, and as bad rows the later ones with another answer."""
    first: dict[str, tuple[int, Row]] = {}
    conflicts = []
    for number, row in enumerate(rows, start=1):
        before, kept = first.setdefault(row.id, (number, row))
        if before < number and not same_answer(row.answer, kept.answer, answers):
            conflicts.append(
                BadRow(
                    f"usable rows of {split}",
                    number,
                    f"the answer is {row.answer!r}, but in row {before} {kept.answer!r} to the same "
                    f"question, {row.question[:80]!r}",
                )
            )
    return [row for _, row in first.values()], conflicts


def _without_leaks(rows: Mapping[Split, list[Row]]) -> dict[Split, list[Row]]:
    """Return the rows of each split whose question is in no split nearer to the test."""
    left: dict[Split, list[Row]] = {}
    later: set[str] = set()
    for split in reversed(SPLITS):
        left[split] = without_questions(rows[split], later)
        later |= question_keys(rows[split])
    return {split: left[split] for split in SPLITS}


def _without_steps(rows: Iterable[Row]) -> int:
    return sum(not row.steps for row in rows)


def _check_steps(task: Task, split: Split, rows: Sequence[Row]) -> None:
    """Refuse splits with too few rows that have steps to learn a chain of thought from."""
    without = _without_steps(rows)
    if without > math.ceil(task.max_rows_without_steps * len(rows)):
        raise CopraError(
            f"{split}: {without:,} of {len(rows):,} rows have no steps, more than max_rows_without_steps "
            f"{task.max_rows_without_steps:g} allows; of them CoT would learn to answer at once. "
            f"{task.steps_advice} Or raise max_rows_without_steps (1 allows all)."
        )


def _frame(rows: list[Row]) -> "pandas.DataFrame":
    import pandas

    return pandas.DataFrame(
        {
            "id": [row.id for row in rows],
            "question": [row.question for row in rows],
            "steps": [list(row.steps) for row in rows],
            "answer": [row.answer for row in rows],
        }
    )


def _listing(bad: list[BadRow]) -> str:
    lines = [f"  {row}" for row in bad[:LISTED_BAD_ROWS]]
    if len(bad) > LISTED_BAD_ROWS:
        lines.append(f"  and {len(bad) - LISTED_BAD_ROWS} more")
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    return "\n".join(
        [f"{count} cannot be used:", *lines, "Repair the data, or set bad_rows: drop to go on without them."]
    )


def _empty(split: Split, bad: int, overlap: int) -> str:
    reasons = [
        f"{bad} rows of the task were dropped as bad" if bad else "",
        f"{overlap} of its rows were left out because a later split has their questions" if overlap else "",
    ]
    because = "; ".join(reason for reason in reasons if reason)
    return (
        f"the {split} split has no rows{f' ({because})' if because else ''}. "
        "Check the task's files and sizes: each of its splits needs rows."
    )
