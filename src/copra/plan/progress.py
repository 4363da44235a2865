"""The progress of a run: running, finished and failed jobs, from their results, logs and heartbeats."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from copra.plan.jobs import PRODUCTS, Job
from copra.utils.heartbeat import JobStatus

TAIL_BYTES = 8192
TRACEBACK = "Traceback (most recent call last):"
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Terminal escape sequences (colors and cursor movements)."""


@dataclass(frozen=True)
class Failed:
    """A job with an error in its log and no result."""

    key: str
    log: Path
    reason: str


def counted(jobs: Mapping[str, Job], results: Path) -> dict[str, tuple[int, int]]:
    """Return, by verb, the number of jobs whose result exists, and of all jobs."""
    found: dict[str, tuple[int, int]] = {}
    for verb in PRODUCTS:
        there = [job.output(results).is_file() for job in jobs.values() if job.verb == verb]
        if there:
            found[verb] = (sum(there), len(there))
    return found


def failed(results: Path, jobs: Mapping[str, Job] | None = None) -> list[Failed]:
    """Return jobs with an error in their log and no result: of `jobs`, or of all logs if that is None.

    A killed job writes no error to its log, so it is not among them.
    """
    found = []
    for job in _logged(results) if jobs is None else jobs.values():
        log = job.log(results)
        if log.is_file() and not job.output(results).is_file():
            reason = _reason(job.verb, log)
            if reason is not None:
                found.append(Failed(job.key, log, reason))
    return sorted(found, key=lambda each: each.key)


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


def _logged(results: Path) -> Iterator[Job]:
    """Yield all jobs that have a log."""
    for log in sorted((results / "logs").rglob("*.log")):
        verb, _, name = str(log.relative_to(results / "logs").with_suffix("")).partition("/")
        # A node's name may contain dots, so only the last suffix is removed.
        if verb in PRODUCTS:
            yield Job(verb, name)


def _reason(verb: str, log: Path) -> str | None:
    """Return the error at the end of a log: copra's own message, or a traceback's last line."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in CONTROL.sub("", text).replace("\r", "\n").split("\n") if line.strip()]
    for line in reversed(lines):
        if line.startswith(f"copra {verb}: "):
            return line
    return lines[-1] if TRACEBACK in lines and not lines[-1].startswith(TRACEBACK) else None


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
