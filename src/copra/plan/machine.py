"""From work to seconds: by what finished jobs took in this folder, or by what a machine is said to do.

Nothing here is torch's: a machine is a few numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.config import Compute
from copra.plan.jobs import Job
from copra.plan.work import Work

PEAK = {"CPU": 1e11, "GPU, float32": 19.5e12, "GPU, tf32": 156e12, "GPU, bfloat16": 312e12}
"""FLOPs a second: of a core with AVX2 at 3 GHz, 32 a cycle; of an A100 without its tensor cores, and with
them in TF32 and bfloat16, by NVIDIA's data sheet."""
UTILIzATION = {"CPU": 0.2, "GPU, float32": 0.3, "GPU, tf32": 0.3, "GPU, bfloat16": 0.3}
"""How much of the peak is reached: from runs of the presets on two shared cores, which gave 0.13 to 0.26; on
a GPU a guess for batches of short sequences."""
WRITING = 3.0
"""So many times as long a FLOP takes that goes into an answer: tokens come one by one, and caches grow."""
SECONDS_A_LAYER = {"CPU": 8e-4, "GPU, float32": 1e-3, "GPU, tf32": 1e-3, "GPU, bfloat16": 1e-3}
"""A pass through a layer takes at least so long, whatever it computes: Python and the launch of kernels."""

BYTES_A_SECOND = 5e8
"""Of weights that are read or saved, with their checksum."""

COMPUTING = ("train", "prune", "quantize", "score", "curve", "evaluate", "sweep", "lens", "latency")
"""Verbs that compute with a model, on a GPU where a job has one."""
SHARED = ("train", "evaluate", "sweep")
"""And those of them that several processes share, each with a GPU or threads of its own."""
START = {**dict.fromkeys((*COMPUTING, "base", "prompt"), 7.0), "figure": 3.0}
"""Seconds of a job before and after its work: importing torch and transformers above all."""
START_OF_OTHERS = 1.5


@dataclass(frozen=True)
class Machine:
    """What a job runs on: CPU threads or GPUs, each of so many FLOPs a second at its peak. A job that several
    processes share has `together` of them, another one `alone`."""

    kind: str
    together: int
    alone: int
    flops_per_second: float
    utilization: float

    @property
    def on_gpu(self) -> bool:
        return self.kind != "CPU"

    def devices_of(self, verb: str) -> int:
        """CPU threads, or GPUs, of a job; 0 GPUs where it computes nothing."""
        if verb in COMPUTING:
            return self.together if verb in SHARED else self.alone
        return 0 if self.on_gpu else 1

    def seconds(self, verb: str, work: Work) -> float:
        """Seconds of a job's work, its start not among them."""
        flops = work.flops + (WRITING - 1) * work.written
        rate = self.flops_per_second * self.utilization * max(1, self.devices_of(verb))
        computing = max(flops / rate, work.layers * SECONDS_A_LAYER[self.kind])
        return computing + work.moved / BYTES_A_SECOND


def machine_of(
    compute: Compute, flops_per_second: float | None = None, utilization: float | None = None
) -> Machine:
    """The machine that a config asks for; what is not given is assumed."""
    kind = f"GPU, {compute.precision}" if compute.gpu else "CPU"
    return Machine(
        kind,
        compute.gpu or compute.threads * compute.workers,
        1 if compute.gpu else compute.threads,
        PEAK[kind] if flops_per_second is None else flops_per_second,
        UTILIzATION[kind] if utilization is None else utilization,
    )


def measured_seconds(jobs: Mapping[str, Job], made: set[str], results: Path) -> dict[str, float]:
    """The seconds that finished jobs took, as far as they were measured.

    Of a job that went on after an interruption this is its last part.
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
    """Seconds of jobs. `factors` say how many times as long finished jobs of a verb took as the machine is
    said to take; under "" stands that of all together, for verbs of which none has finished."""

    machine: Machine
    measured: Mapping[str, float]
    factors: Mapping[str, float]

    def seconds(self, job: Job, work: Work) -> float:
        """What a job took, or will take."""
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
    """The clock after some jobs were measured; with `trusted` false the machine is taken as it is said to
    be for the others."""
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
    """Seconds of a job on a machine as it is said to be, with its start."""
    return START.get(verb, START_OF_OTHERS) + machine.seconds(verb, work)
