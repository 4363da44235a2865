"""Progress records of running jobs, for `copra status`.

In a job's state folder, `run.json` describes the job, and `speed.jsonl` holds its steps with times. Times are
written only there, because results must be the same in every run. Errors of writing a record are ignored, so
that they never stop the work.
"""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import write_json

RUN, SPEED, LOG = "run.json", "speed.jsonl", "training.jsonl"
SECONDS_BETWEEN_TICKS = 5.0
FRESH_SECONDS = 60.0
"""Time since the last record within which a job counts as running without further checks."""
SILENT_SECONDS = 600.0
"""Time since the last record after which a job of another machine counts as stopped."""
RECENT = 60
"""Number of records over which the speed is averaged: about five minutes."""
TAIL_BYTES = 32768


class Heartbeat:
    """Writes the progress of a job into its state folder, if this is the first process of the job."""

    def __init__(self, state: Path):
        self.state = state
        self._latest = -math.inf

    def record(self, step: int, rates: Callable[[], dict[str, float]] = dict) -> bool:
        """Record the number of finished steps and the rates, at most every few seconds; True if written.

        Other calls cost about a microsecond and compute no rates.
        """
        now = time.monotonic()
        if now - self._latest < SECONDS_BETWEEN_TICKS:
            return False
        self._latest = now
        if processes.rank():
            return False
        known = rates()
        with contextlib.suppress(OSError), open(self.state / SPEED, "a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **known}) + "\n")
        return True


def start_heartbeat(state: Path, node: str, total: int, unit: str = "steps") -> Heartbeat:
    """Write `run.json` into a state folder and return the job's heartbeat, before the first step.

    An interrupted job that resumes does so again. Every process of a job may call this.
    """
    if processes.rank():
        return Heartbeat(state)
    record = {"node": node, "total": total, "unit": unit, "started": time.time()}
    with contextlib.suppress(OSError, CopraError):
        (state / SPEED).unlink(missing_ok=True)
        write_json(state / RUN, {**record, "host": socket.gethostname(), "process": os.getpid()})
    return Heartbeat(state)


def in_words(rates: Mapping[str, float]) -> str:
    """Return rates as text for the progress line and `copra status`; empty if there are none."""
    if not {"tokens_per_second", "tflops", "peak_gib"} <= set(rates):
        return ""
    words = [f"{rates['tokens_per_second']:,.0f} tokens/s", f"{rates['tflops']:.3g} TFLOP/s"]
    words += [f"MFU {100 * rates['mfu']:.1f}%"] if "mfu" in rates else []
    return ", ".join([*words, f"peak {rates['peak_gib']:.1f} GiB"])


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, read from its folder `state`.

    `step` of `total` units are done. `speed` is in units per second over the last minutes (None: unknown),
    `rates` are the last measurements of a training (`copra.training.speed`), `silent` is the time in seconds
    since the last record. `line` is the last whole line of its training log, and `saved` the step from which
    it would resume (0: none). `stopped` is true if it ended before it was done.
    """

    state: Path
    node: str
    unit: str
    step: int
    total: int
    speed: float | None
    silent: float
    stopped: bool
    line: dict[str, Any]
    saved: int
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.step) / self.speed if self.speed else None


def running(results: Path, now: float | None = None) -> list[JobStatus]:
    """Return the status of all jobs with records below `results`, running ones first, then by name.

    `now` is a Unix time. Folders may vanish and files may grow during the call.
    """
    now = time.time() if now is None else now
    found = (_read(file.parent, now) for file in (results / "state").glob(f"*/{RUN}"))
    return sorted((job for job in found if job is not None), key=lambda job: (job.stopped, job.node))


def _read(folder: Path, now: float) -> JobStatus | None:
    try:
        run = json.loads((folder / RUN).read_text())
        node, total, started = str(run["node"]), int(run["total"]), float(run["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    heard = [line for line in _lines(folder / SPEED) if {"step", "time"} <= set(line)]
    ticks = [(line["step"], line["time"]) for line in heard]
    line: dict[str, Any] = next(reversed(list(_lines(folder / LOG))), {})
    ticks = ticks[-RECENT:]
    step, latest = ticks[-1] if ticks else (line.get("step", 0), started)
    silent = max(0.0, now - latest)
    return JobStatus(
        state=folder,
        node=node,
        unit=run.get("unit", "steps"),
        step=step,
        total=total,
        speed=_speed(ticks),
        silent=silent,
        stopped=silent > FRESH_SECONDS and not _alive(run, silent),
        line=line,
        saved=_saved(folder),
        rates={name: value for name, value in heard[-1].items() if isinstance(value, int | float)}
        if heard
        else {},
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the last whole JSON lines of a file, without lines that are cut off at either end."""
    try:
        with open(file, "rb") as handle:
            handle.seek(max(0, file.stat().st_size - TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _speed(ticks: list[tuple[int, float]]) -> float | None:
    if len(ticks) < 2:
        return None
    (first, begin), (last, end) = ticks[0], ticks[-1]
    return (last - first) / (end - begin) if end > begin and last > first else None


def _alive(run: dict[str, Any], silent: float) -> bool:
    """True if a silent job still runs, by its process on this machine or by its silence on another."""
    if run.get("host") != socket.gethostname():
        return silent <= SILENT_SECONDS
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return processes.is_alive(run["process"], run["started"])
    return False


def _saved(folder: Path) -> int:
    """Return the step of the newest saved state, by the folder's name; 0 if there is none."""
    try:
        names = [path.name.removeprefix("step-") for path in folder.iterdir()]
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)
