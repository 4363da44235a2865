"""The progress of a run: finished results and failed and running jobs, from files, logs and heartbeats."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.outputs import figure_files, table_files
from copra.experiment.workflow import Workflow
from copra.utils.heartbeat import JobStatus

TAIL_BYTES = 8192
TRACEBACK = "Traceback (most recent call last):"
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Terminal escape sequences (colors and cursor movements)."""


@dataclass(frozen=True)
class Failed:
    """A job that wrote an error to its log and has not run again since."""

    key: str
    log: Path
    reason: str


def finished_results(workflow: Workflow, results: Path) -> dict[str, tuple[int, int]]:
    """Return, by folder of results, the number of files that exist, and of all that a run makes."""
    targets = [*workflow.artifacts(), *table_files(workflow), *figure_files(workflow)]
    found: dict[str, tuple[int, int]] = {}
    for path in (Path(target).relative_to(workflow.folder) for target in dict.fromkeys(targets)):
        there, total = found.get(path.parts[0], (0, 0))
        found[path.parts[0]] = there + (results / path).is_file(), total + 1
    return found


def failed_jobs(results: Path, workflow: Workflow | None = None) -> list[Failed]:
    """Return the jobs whose log ends in an error; with a workflow, none of models that it does not lead to.

    A killed job writes no error to its log, so it is not among them.
    """
    found = []
    for log in sorted((results / "logs").rglob("*.log")):
        # A node's name may contain dots, so only the last suffix is removed.
        key = log.relative_to(results / "logs").as_posix().removesuffix(".log")
        rule, *parts = key.split("/")
        if workflow is not None and any("+" in part and part not in workflow.tree.nodes for part in parts):
            continue
        if rule != "plan" and (reason := reason_of(rule, log)):
            found.append(Failed(key, log, reason))
    return found


def lines_of(running: Sequence[JobStatus]) -> list[list[str]]:
    """Return one table row per job: node, steps, percentage, loss, learning rate and speed."""
    return [
        [
            job.node,
            f"{job.step:,} of {job.total:,} {job.unit}",
            f"{job.step / job.total:.0%}" if job.total else "",
            _number(job.line.get("loss"), ".4f"),
            _number(job.line.get("learning_rate"), ".2e"),
            "" if job.speed is None else f"{job.speed:.3g}/s",
        ]
        for job in running
    ]


def reason_of(rule: str, log: Path) -> str | None:
    """Return copra's message at the end of a log, or a traceback's last line; None if it has neither."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in CONTROL.sub("", text).replace("\r", "\n").split("\n") if line.strip()]
    for line in reversed(lines):
        if line.startswith(f"copra {rule.replace('_', '-')}: "):
            return line
    return lines[-1] if TRACEBACK in lines and not lines[-1].startswith(TRACEBACK) else None


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
