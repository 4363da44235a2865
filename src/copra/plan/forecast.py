"""The forecast of an experiment: work, time and bytes of each job, and the longest chain of jobs."""

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
    """The forecast of one job.

    `made` is True if its result is up to date. `work` and `seconds` are None if they depend on a base of
    unknown size; `seconds` are measured if the job has finished and was measured, otherwise estimated.
    `learning` are the FLOPs that a manifest counts as training, `bytes` the size of a checkpoint, `state` the
    bytes of a running training's state, and `steps` the optimizer steps of a training.
    """

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
    """The forecast of all jobs by key, each after the jobs that it needs, and the time model.

    `assumed` lists the assumptions about rows, `unknown` the paths of bases of unknown size. `warnings` has
    one line per pruning that misses its budget, `short` one line per reason for short stages.
    """

    lines: Mapping[str, Line]
    clock: TimeModel
    assumed: tuple[str, ...]
    unknown: Mapping[str, str]
    warnings: tuple[str, ...]
    short: tuple[str, ...]

    def device_seconds(self, lines: Iterable[Line]) -> float:
        """Return seconds times CPU threads, or times GPUs if the config requests any."""
        return sum((line.seconds or 0.0) * self.clock.machine.devices_of(line.job.verb) for line in lines)

    def longest_chain(self, counts: Callable[[Line], bool]) -> tuple[float, list[Job]]:
        """Return the seconds of the longest chain of dependent jobs, and the chain.

        Only jobs for which `counts` is true take time and are in the chain.
        """
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
    """Return the forecast of an experiment.

    With `flops_per_second` or `utilization` given, the machine has that speed; otherwise measured jobs
    correct its assumed speed.

    Raises:
        CopraError: copra does not support the kind of a base, the record of a result cannot be read, or a
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
