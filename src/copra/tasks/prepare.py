"""From a task to its three tables: every row checked, every question in one split only."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from copra import files
from copra.errors import CopraError
from copra.tasks.task import SPLITS, BadRow, Row, Split, Task

LISTED_BAD_ROWS = 50


def prepare(task: Task, folder: Path) -> None:
    """Write `folder`/{train,valid,test}.parquet with columns id, question, steps (list), answer.

    A question that occurs again in its split is left out, and so is one that a split nearer to
    the test has: test questions leave valid and train, valid questions leave train. Each file
    carries the same record, see `data_record`, and is complete or absent.

    Raises:
        CopraError: rows cannot be used and `bad_rows` is "stop" (one error lists them); a split
            has no rows; a source cannot be read; the folder cannot be written.
    """
    found, bad = _sorted_out(task)
    if bad and task.bad_rows == "stop":
        raise CopraError(_listing(bad))
    splits = {split: _first_of_each(found[split]) for split in SPLITS}
    duplicates = {split: len(found[split]) - len(splits[split]) for split in SPLITS}
    overlap = {
        "train": _leave_out(splits["train"], splits["valid"], splits["test"]),
        "valid": _leave_out(splits["valid"], splits["test"]),
    }
    tables = {split: list(rows.values())[: task.limit.get(split)] for split, rows in splits.items()}
    for split, rows in tables.items():
        if not rows:
            raise CopraError(_empty(split, len(bad), overlap.get(split, 0)))
    record = {
        "task": task.kind,
        "settings": task.canonical(),
        "rows": {split: len(rows) for split, rows in tables.items()},
        "dropped": [asdict(row) for row in bad],
        "duplicates": duplicates,
        "overlap": overlap["train"],
        "overlap_valid": overlap["valid"],
    }
    for split, rows in tables.items():
        files.write_parquet(Path(folder) / f"{split}.parquet", _frame(rows), record)


def read_rows(path: Path) -> list[Row]:
    """The rows of one split, in order.

    Raises:
        CopraError: the file is missing, cut short, or not a table that `prepare` wrote.
    """
    frame = files.read_parquet(path)
    missing = [column for column in ("question", "steps", "answer") if column not in frame]
    if missing:
        raise CopraError(
            f"{path}: no column {', '.join(missing)}, so no table of a task. Delete it and run snakemake."
        )
    return [
        Row(question, tuple(steps), answer)
        for question, steps, answer in zip(frame["question"], frame["steps"], frame["answer"], strict=True)
    ]


def data_record(path: Path) -> dict[str, Any]:
    """How the table at `path` came about.

    Keys: task (its kind), settings, rows (count by split), dropped (bad rows: file, row, reason),
    duplicates (count by split), overlap (training rows left out because valid or test has the
    question), overlap_valid (validation rows left out because test has it).
    """
    return files.parquet_record(path)


def _sorted_out(task: Task) -> tuple[dict[Split, list[Row]], list[BadRow]]:
    found: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    bad = []
    for split, row in task.rows():
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            found[split].append(row)
    return found, bad


def _first_of_each(rows: Iterable[Row]) -> dict[str, Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.id, row)
    return first


def _leave_out(rows: dict[str, Row], *others: dict[str, Row]) -> int:
    """Remove from `rows` the questions that the others have, and say how many those were."""
    shared = [name for name in rows if any(name in other for other in others)]
    for name in shared:
        del rows[name]
    return len(shared)


def _frame(rows: list[Row]):
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
        "Check the task's files and sizes: training, validation and test all need rows."
    )
