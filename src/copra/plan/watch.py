"""A run as people follow it: a line per finished job, the reason of a failed one, and the time that is left.

The time comes from the forecast of the run (`copra plan --jobs`), which is made in the background, and from
what the jobs of this run took in comparison.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from copra.plan.machine import benchmarked_seconds
from copra.plan.progress import lines_of, reason_of
from copra.utils.files import read_json
from copra.utils.heartbeat import running
from copra.utils.quantities import amount, duration

PAGES = ("table", "export", "figure", "page")
"""Rules whose jobs take a second or two, and are not told."""


@dataclass(frozen=True)
class RunningJob:
    """A job that Snakemake started: its rule and name, as in the path of its log."""

    rule: str
    name: str
    outputs: tuple[Path, ...]
    benchmark: Path | None
    begun: float

    @property
    def key(self) -> str:
        return f"{self.rule}/{self.name}" if self.name else self.rule


class Watch:
    """The state of a run so far, as text. `configs` are its config files, as Snakemake names them."""

    def __init__(self) -> None:
        self.configs: list[str] = []
        self._total, self._done = 0, 0
        self._begun = time.monotonic()
        self._jobs: dict[int, RunningJob] = {}
        self._finished: set[str] = set()
        self._results: Path | None = None
        self._forecast: _Forecast | None = None

    def begun(self, stats: Mapping[str, int]) -> str:
        """Return a line on the jobs of the run; `stats` has their number by rule, and in all."""
        counts = {rule: number for rule, number in stats.items() if rule not in ("total", "all", "host")}
        self._total, self._begun = sum(counts.values()), time.monotonic()
        listed = ", ".join(f"{number} {rule}" for rule, number in counts.items())
        return f"{self._total} jobs: {listed}" if counts else ""

    def started(self, number: int, log: Sequence[str], outputs: Sequence[str], benchmark: str | None) -> None:
        """Take note of a job that Snakemake started under a number. Jobs without a log are no work."""
        if not log:
            return
        self._results, rule, name = _parts(log[0])
        self._jobs[number] = RunningJob(
            rule, name, tuple(map(Path, outputs)), Path(benchmark) if benchmark else None, time.monotonic()
        )
        if self._forecast is None and self.configs:
            self._forecast = _Forecast(self.configs)

    def finished(self, number: int) -> str:
        """Return the line of a job that has finished, "" for one that was no work."""
        job = self._jobs.pop(number, None)
        if job is None:
            return ""
        self._done += 1
        self._finished.add(job.key)
        if job.rule in PAGES:
            return ""
        took = None if job.benchmark is None else benchmarked_seconds(job.benchmark)
        seconds = time.monotonic() - job.begun if took is None else took
        words = [f"{job.rule} {job.name}".rstrip(), result_of(job.rule, job.outputs), duration(seconds)]
        return f"{self._place()} " + "  ".join(filter(None, [*words, self.left()]))

    def failed(self, number: int, rule: str, log: Sequence[str]) -> str:
        """Return the lines of a failed job: its reason and the path of its log."""
        job = self._jobs.pop(number, None)
        name = f"{rule} {job.name if job else ''}".rstrip()
        reasons = [reason_of(rule, Path(path)) for path in log]
        if KeyboardInterrupt.__name__ in reasons:
            return f"stopped {name}"
        lines = [f"FAILED {name}"]
        for path, reason in zip(log, reasons, strict=True):
            lines += [f"  {reason}"] if reason else []
            lines.append(f"  Log: {path}")
        return "\n".join(lines)

    def failed_together(self, jobs: Sequence[Mapping[str, Any]]) -> str:
        """Return the lines of the failed jobs of a group, by Snakemake's details of all its jobs.

        Snakemake does not know which of them failed: those whose logs give a reason, or else any.
        """
        told = [
            job for job in jobs if any(reason_of(job["rule_name"], Path(path)) for path in job["log"])
        ] or jobs
        lines = [self.failed(job["jobid"], job["rule_name"], job["log"]) for job in told]
        for job in jobs:
            self._jobs.pop(job["jobid"], None)
        return "\n".join(lines)

    def now(self) -> str:
        """Return a line per running job, and one on all of the run."""
        told = [] if self._results is None else [job for job in running(self._results) if not job.stopped]
        lines = [[job.node, *line[1:]] for job, line in zip(told, lines_of(told), strict=True)]
        names = {job.node for job in told}
        for job in list(self._jobs.values()):
            if job.name not in names and job.rule not in PAGES:
                lines.append([job.rule, job.name, duration(time.monotonic() - job.begun)])
        lines.append([f"{self._place()} jobs done", self.left()])
        return "\n".join("  ".join(filter(None, line)) for line in lines)

    def left(self) -> str:
        """Return words for the time that is left, "" if it is not known yet."""
        expected = {} if self._forecast is None else self._forecast.seconds()
        done = sum(seconds for key, seconds in expected.items() if key in self._finished)
        # A run to some target has fewer jobs than the experiment.
        if not done or len(expected) > self._total:
            return ""
        rate = (time.monotonic() - self._begun) / done
        left = rate * sum(seconds for key, seconds in expected.items() if key not in self._finished)
        return f"about {duration(left)} left" if left > 1 else ""

    def close(self) -> None:
        """End what runs in the background."""
        if self._forecast is not None:
            self._forecast.close()

    def _place(self) -> str:
        width = len(str(self._total))
        return f"[{self._done:{width}}/{self._total}]"


class _Forecast:
    """The seconds that jobs are expected to take, by a process in the background that nothing waits for."""

    def __init__(self, configs: Sequence[str]):
        self._folder = TemporaryDirectory(prefix="copra-")
        self._file = Path(self._folder.name) / "seconds.json"
        self._known: dict[str, float] = {}
        plan = [sys.executable, "-m", "copra.cli", "plan", *configs, "--jobs", str(self._file)]
        self._process = subprocess.Popen(
            ["nice", "-n", "19", *plan],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def seconds(self) -> dict[str, float]:
        """Return the seconds of jobs by key; none as long as they are not known."""
        if not self._known and self._file.is_file():
            self._known = json.loads(self._file.read_text())
        return self._known

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def result_of(rule: str, outputs: Sequence[Path]) -> str:
    """Return a few words on the result of a job, from its small files; "" if there is nothing to tell."""
    found = {path.name if path.name in RESULTS else rule: path for path in outputs if path.suffix == ".json"}
    for name, path in found.items():
        if name in RESULTS and path.is_file():
            return RESULTS[name](read_json(path))
    return ""


def _of_model(manifest: Mapping[str, Any]) -> str:
    record = manifest["lineage"][-1].get("record") if manifest["lineage"] else None
    if record is None or "selected" not in record:
        return f"{amount(manifest['parameters'])} parameters"
    selected = record["selected"] or {}
    value = selected.get("value")
    if value is None:
        return f"{record['steps']:,} steps"
    measured = f"{100 * value:.1f}% right" if selected["by"] == "accuracy" else f"loss {value:.4f}"
    return f"{measured} in validation, {record['steps']:,} steps"


def _of_evaluation(metrics: Mapping[str, Any]) -> str:
    return f"{100 * metrics['accuracy']:.1f}% right, {amount(metrics['flops']['total'], 'FLOPs')} per answer"


RESULTS = {
    "copra.json": _of_model,
    "metrics.json": _of_evaluation,
    "data": lambda summary: f"{summary['rows']:,} rows",
}


def _parts(log: str) -> tuple[Path, str, str]:
    """Return the folder of results, the rule and the name of a job by the path of its log."""
    results, _, key = log.removesuffix(".log").partition("/logs/")
    rule, _, name = key.partition("/")
    return Path(results), rule, name
