"""A forecast: each job of an experiment with its work, its time and its bytes, and what follows from them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.workflow import Workflow
from copra.plan.budgets import budget_warnings
from copra.plan.estimate import Estimate
from copra.plan.jobs import Job, jobs_of
from copra.plan.lengths import length_warnings, training_lengths
from copra.plan.machine import TimeModel, clock_of, machine_of, measured_seconds
from copra.plan.made import made_jobs
from copra.plan.work import Work


@dataclass(frozen=True)
class Line:
    """What is known of one job. `made`: its result is there. `work` and `seconds` are None where they depend
    on a base that is not known; of `seconds`, what a finished job took if that was measured. `learning` are
    the FLOPs that a manifest counts as training, `bytes` those of a checkpoint, `state` those of a training
    under way, and `steps` the optimizer steps of a training."""

    job: Job
    made: bool
    work: Work | None
    learning: float
    seconds: float | None
    bytes: float
    state: float
    steps: int | None

    @property
    def flops(self) -> float:
        return 0.0 if self.work is None else self.work.flops


@dataclass(frozen=True)
class Forecast:
    """All jobs by their keys, each after those that it needs; the clock; what was assumed of rows; the
    paths of bases whose sizes are not known; a line for each pruning that misses its budget; and one for
    stages of few optimizer steps."""

    lines: Mapping[str, Line]
    clock: TimeModel
    assumed: tuple[str, ...]
    unknown: Mapping[str, str]
    warnings: tuple[str, ...]
    short: tuple[str, ...]

    def device_seconds(self, lines: Iterable[Line]) -> float:
        """Seconds times CPU threads, or GPUs where the config asks for any."""
        return sum((line.seconds or 0.0) * self.clock.machine.devices_of(line.job.verb) for line in lines)

    def longest_chain(self, counts: Callable[[Line], bool]) -> tuple[float, list[Job]]:
        """The chain of jobs that takes longest if all others have room beside it, and its seconds; only jobs
        that `counts` says take time."""
        ends: dict[str, tuple[float, str | None]] = {}
        for key, line in self.lines.items():
            before = max(line.job.needs, key=lambda need: ends[need][0], default=None)
            own = line.seconds or 0.0 if counts(line) else 0.0
            ends[key] = ((ends[before][0] if before else 0.0) + own, before)
        last = max(ends, key=lambda key: ends[key][0])
        seconds, chain, key = ends[last][0], [], last
        while key is not None:
            if counts(self.lines[key]):
                chain.append(self.lines[key].job)
            key = ends[key][1]
        return seconds, chain[::-1]


def forecast(
    workflow: Workflow,
    results: Path,
    flops_per_second: float | None = None,
    utilization: float | None = None,
) -> Forecast:
    """What the jobs of an experiment will compute and take. With one of the last two given, the machine is
    taken at that, and otherwise measured jobs correct what is assumed of it.

    Raises:
        CopraError: a base is of a kind that copra does not know, a record of a result cannot be read, or a
            pruning would remove nothing.
    """
    jobs = jobs_of(workflow)
    made = made_jobs(jobs, workflow, results)
    estimate = Estimate(workflow, results, made)
    works = {key: estimate.work(job) for key, job in jobs.items()}
    clock = clock_of(
        machine_of(workflow.experiment.compute, flops_per_second, utilization),
        jobs,
        works,
        measured_seconds(jobs, made, results),
        trusted=flops_per_second is None and utilization is None,
    )
    lines = {}
    for key, job in jobs.items():
        known = works[key] is not None
        lines[key] = Line(
            job=job,
            made=key in made,
            work=works[key],
            learning=estimate.learning(job.name).flops if job.verb == "train" and known else 0.0,
            seconds=clock.seconds(job, works[key]) if known else None,
            bytes=estimate.bytes_of(job),
            state=estimate.state_bytes(job),
            steps=estimate.optimizer_steps(job.name) if job.verb == "train" else None,
        )
    warnings = tuple(budget_warnings(estimate))
    short = tuple(length_warnings(training_lengths(estimate)))
    return Forecast(lines, clock, tuple(estimate.assumed()), estimate.unknown(), warnings, short)
