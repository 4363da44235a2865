"""The forecast of an experiment: work, time, disk and memory of each job."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from copra.experiment.workflow import Workflow
from copra.plan.budgets import budget_warnings
from copra.plan.estimate import Estimate
from copra.plan.jobs import Job, jobs_of
from copra.plan.lengths import early_stop_assumption, length_warnings, training_lengths
from copra.plan.machine import ASKING, Machine, machine_of, measured_seconds, speed_factors
from copra.plan.work import training, work_of

T = TypeVar("T")
Range = tuple[float, float]
"""The least and the greatest value, by what earlier prunings leave."""
ZERO: Range = (0.0, 0.0)
ANSWERS = (*ASKING, "logit_lens")
"""Rules whose FLOPs are those of answering questions."""


@dataclass(frozen=True)
class Line:
    """The forecast of one job.

    `flops` and `seconds` are None if they depend on a base of unknown size; `seconds` are measured if the job
    has finished and was measured. `training` are the FLOPs that a manifest counts as training, `disk` the
    bytes of a checkpoint, `memory` those of a training at its peak, and `steps` its optimizer steps
    at most.
    """

    job: Job
    flops: Range | None = None
    seconds: Range | None = None
    training: Range = ZERO
    disk: Range = ZERO
    memory: Range = ZERO
    steps: int | None = None


@dataclass(frozen=True)
class Forecast:
    """The forecast of all jobs by key, each after the jobs that it needs.

    `measured` are the seconds of finished jobs, `assumed` the assumptions about rows and steps, `unknown` the
    paths of bases of unknown size; `warnings` has one line per pruning that misses its budget, `short` one
    line per reason for short stages.
    """

    lines: Mapping[str, Line]
    machine: Machine
    measured: Mapping[str, float]
    assumed: list[str]
    unknown: Mapping[str, str]
    warnings: list[str]
    short: list[str]

    def longest_chain(self) -> tuple[float, list[Job]]:
        """Return the seconds of the longest chain of dependent jobs that are to run, and the chain."""
        ends: dict[str, tuple[float, list[Job]]] = {}
        for key, line in self.lines.items():
            seconds, chain = max(
                (ends[need] for need in line.job.needs), key=lambda end: end[0], default=(0.0, [])
            )
            own = [] if line.job.cached else [line.job]
            ends[key] = seconds + ((line.seconds or ZERO)[1] if own else 0.0), chain + own
        return max(ends.values(), key=lambda end: end[0])


def total(ranges: Iterable[Range | None]) -> Range:
    """Return the sum of ranges, unknown ones left out."""
    known = [each for each in ranges if each is not None]
    return sum(low for low, _ in known), sum(high for _, high in known)


def forecast(
    workflow: Workflow, peak_flops: float | None = None, utilization: float | None = None
) -> Forecast:
    """Return the forecast of an experiment.

    With `peak_flops` or `utilization` given, the machine has that speed; otherwise measured jobs correct its
    assumed speed.

    Raises:
        CopraError: Snakemake cannot plan the run, copra does not support the kind of a base, the record of a
            result cannot be read, or a pruning would remove nothing.
    """
    jobs = jobs_of(workflow)
    # Snakemake does not miss a file that no job to run reads.
    cached = {key for key, job in jobs.items() if job.cached and all(map(Path.exists, job.outputs))}
    estimate = Estimate(workflow, Path(workflow.folder), cached)
    is_certain = all(
        sizes is None or sizes[0] == sizes[1] for sizes in map(estimate.sizes, workflow.tree.nodes)
    )

    def bounds(value: Callable[[int], T]) -> tuple[T, T]:
        least = value(0)
        return least, least if is_certain else value(1)

    works = {key: bounds(partial(work_of, estimate, job)) for key, job in jobs.items()}
    measured = {key: seconds for key in cached if (seconds := measured_seconds(jobs[key])) is not None}
    machine = machine_of(workflow.experiment.compute, peak_flops, utilization)
    if peak_flops is None and utilization is None:
        least = {key: work for key, (work, _) in works.items() if work is not None}
        machine = replace(machine, factors=speed_factors(machine, jobs, least, measured))
    lines = {}
    for key, job in jobs.items():
        line = Line(job, disk=_range(*bounds(partial(estimate.checkpoint_bytes, job))))
        if job.rule == "train":
            line = replace(line, steps=estimate.schedule(job.name).steps)
        low, high = works[key]
        if low is not None and high is not None:
            time = _range(machine.seconds(job.rule, low), machine.seconds(job.rule, high))
            if key in measured:
                time = measured[key], measured[key]
            line = replace(line, flops=_range(low.flops, high.flops), seconds=time)
            if job.rule == "train":
                least_work, most_work = bounds(partial(training, estimate, job.name))
                line = replace(
                    line,
                    training=_range(least_work.flops, most_work.flops),
                    memory=_range(*bounds(partial(estimate.memory_bytes, job.name))),
                )
        lines[key] = line
    lengths = training_lengths(estimate)
    warnings, short = budget_warnings(estimate), length_warnings(lengths)
    assumed = [*estimate.assumed(), *early_stop_assumption(lengths)]
    return Forecast(lines, machine, measured, assumed, estimate.unknown(), warnings, short)


def _range(low: float, high: float) -> Range:
    # Of the shapes that a pruning may leave, that with the fewest FLOPs per answer may take more of the rest.
    return min(low, high), max(low, high)
