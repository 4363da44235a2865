"""Estimates of seconds from work, by measured jobs of this folder or by the nominal speed of a machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.config import Compute
from copra.plan.jobs import Job
from copra.plan.work import Work

PEAK = {"CPU": 1e11, "GPU, float32": 19.5e12, "GPU, tf32": 156e12, "GPU, bfloat16": 312e12}
"""Peak FLOPs per second: of a core with AVX2 at 3 GHz, 32 per cycle; of an A100 without tensor cores, and
with them in TF32 and bfloat16, by NVIDIA's data sheet."""
UTILIZATION = {"CPU": 0.2, "GPU, float32": 0.3, "GPU, tf32": 0.3, "GPU, bfloat16": 0.3}
"""Fraction of the peak that is reached: on a CPU from runs of the presets on two shared cores, which gave
0.13 to 0.26; on a GPU a guess for batches of short sequences."""
WRITING = 3.0
"""Time factor of a FLOP in writing answers: tokens are generated one by one, and caches grow."""
SECONDS_A_LAYER = {"CPU": 8e-4, "GPU, float32": 1e-3, "GPU, tf32": 1e-3, "GPU, bfloat16": 1e-3}
"""Least seconds of a pass through a layer, for any FLOPs: Python and the launch of kernels."""

BYTES_A_SECOND = 5e8
"""Bytes per second of weights that are read or saved, including their checksum."""

COMPUTING = ("train", "prune", "quantize", "score", "curve", "evaluate", "sweep", "lens", "latency")
"""Verbs that compute with a model, on a GPU if the job has one."""
SHARED = ("train", "evaluate", "sweep")
"""Verbs that several processes share, each with its own GPU or threads."""
START = {**dict.fromkeys((*COMPUTING, "base", "prompt"), 7.0), "figure": 3.0}
"""Seconds of a job before and after its work, mostly importing torch and transformers."""
START_OF_OTHERS = 1.5


@dataclass(frozen=True)
class Machine:
    """The devices of a job: CPU threads or GPUs, each with a peak of `flops_per_second`.

    A job that several processes share has `together` devices, any other job `alone` devices.
    """

    kind: str
    together: int
    alone: int
    flops_per_second: float
    utilization: float

    @property
    def on_gpu(self) -> bool:
        return self.kind != "CPU"

    def devices_of(self, verb: str) -> int:
        """Return the number of CPU threads or GPUs of a job; 0 GPUs if it does not compute with a model."""
        if verb in COMPUTING:
            return self.together if verb in SHARED else self.alone
        return 0 if self.on_gpu else 1

    def seconds(self, verb: str, work: Work) -> float:
        """Return the seconds of a job's work, without its start."""
        flops = work.flops + (WRITING - 1) * work.written
        rate = self.flops_per_second * self.utilization * max(1, self.devices_of(verb))
        computing = max(flops / rate, work.layers * SECONDS_A_LAYER[self.kind])
        return computing + work.moved / BYTES_A_SECOND


def machine_of(
    compute: Compute, flops_per_second: float | None = None, utilization: float | None = None
) -> Machine:
    """Return the machine that a config requests; peak and utilization have defaults."""
    kind = f"GPU, {compute.precision}" if compute.gpu else "CPU"
    return Machine(
        kind,
        compute.gpu or compute.threads * compute.workers,
        1 if compute.gpu else compute.threads,
        PEAK[kind] if flops_per_second is None else flops_per_second,
        UTILIZATION[kind] if utilization is None else utilization,
    )


def measured_seconds(jobs: Mapping[str, Job], made: set[str], results: Path) -> dict[str, float]:
    """Return the measured seconds of finished jobs, from their benchmark files.

    For a job that was resumed these are the seconds since its last start.
    """
    found = {}
    for key in made:
        try:
            names, values = jobs[key].benchmark(results).read_text().splitlines()[:2]
            found[key] = float(dict(zip(names.split("\t"), values.split("\t"), strict=True))["s"])
        except (OSError, ValueError, KeyError):
            continue
    return found


@dataclass(frozen=True)
class TimeModel:
    """Seconds of jobs, measured or estimated.

    `factors` holds, by verb, the ratio of measured to nominal seconds of finished jobs; the key "" is the
    ratio over all verbs, for verbs without a finished job.
    """

    machine: Machine
    measured: Mapping[str, float]
    factors: Mapping[str, float]

    def seconds(self, job: Job, work: Work) -> float:
        """Return the measured seconds of a job or, without a measurement, an estimate."""
        if job.key in self.measured:
            return self.measured[job.key]
        factor = self.factors.get(job.verb, self.factors.get("", 1.0))
        return factor * nominal_seconds(self.machine, job.verb, work)


def clock_of(
    machine: Machine,
    jobs: Mapping[str, Job],
    works: Mapping[str, Work | None],
    measured: Mapping[str, float],
    *,
    trusted: bool = True,
) -> TimeModel:
    """Return the time model from measured jobs; if `trusted` is false, others take their nominal seconds."""
    said: dict[str, float] = {}
    took: dict[str, float] = {}
    for key, seconds in measured.items():
        work = works[key]
        if trusted and work is not None:
            for group in (jobs[key].verb, ""):
                said[group] = said.get(group, 0.0) + nominal_seconds(machine, jobs[key].verb, work)
                took[group] = took.get(group, 0.0) + seconds
    return TimeModel(machine, measured, {group: took[group] / said[group] for group in took})


def nominal_seconds(machine: Machine, verb: str, work: Work) -> float:
    """Return the seconds of a job at the machine's nominal speed, including its start."""
    return START.get(verb, START_OF_OTHERS) + machine.seconds(verb, work)
