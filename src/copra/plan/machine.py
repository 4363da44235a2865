"""Seconds of jobs: measured, or estimated from their work and the speed of a machine."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from copra.experiment.config import Compute
from copra.plan.jobs import Job

PEAK_FLOPS = {"CPU": 1e11, "GPU, float32": 19.5e12, "GPU, tf32": 156e12, "GPU, bfloat16": 312e12}
"""Peak FLOPs per second: of a core with AVX2 at 3 GHz, 32 per cycle; of an A100 without tensor cores, and
with them in TF32 and bfloat16, by NVIDIA's data sheet."""
CPU_UTILIZATION, GPU_UTILIZATION = 0.2, 0.3
"""Fraction of the peak that is reached: on a CPU from runs of the presets on two shared cores, which gave
0.13 to 0.26; on a GPU a guess for batches of short sequences."""
ANSWERING = 3.0
"""Time factor of a FLOP in answers: tokens are generated one by one, and caches grow."""
LAYER_SECONDS = 1e-3
"""Least seconds of a pass through a layer, for any FLOPs: Python and the launch of kernels."""

ASKING = ("evaluate", "sweep_latents", "swap_latents")
"""Rules that answer all questions of a split, and keep the answers of a job that was killed."""
SHARED = ("train", *ASKING)
"""Rules whose jobs several processes share, each with its own GPU or threads."""
COMPUTING = (*SHARED, "prune", "quantize", "score", "curve", "logit_lens", "latency")
"""Rules that compute with a model, on a GPU where there is one. No other job says how fast a machine
computes: `data` and `base` may wait for a download."""
CONVERTING = "convert"
"""The rule that computes on the CPU, whatever a machine has."""
START_SECONDS = {**dict.fromkeys((*COMPUTING, "base", "prompt"), 7.0), "figure": 3.0, CONVERTING: 60.0}
"""Seconds of a job before and after its work, mostly of imports; ExecuTorch takes as long for a program."""
OTHER_START_SECONDS = 1.5


@dataclass(frozen=True)
class Work:
    """The work of a job: FLOPs, those of them for answers, and sequential passes through single layers.

    These passes bound the time of a small model.
    """

    flops: float = 0.0
    answers: float = 0.0
    layers: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * each for each in astuple(self)))


@dataclass(frozen=True)
class Machine:
    """CPU threads or GPUs of a job: `together` for a job that processes share, `alone` for any other.

    `factors` are the ratios of measured to nominal seconds by rule; the key "" is that of all rules together.
    """

    kind: str
    together: int
    alone: int
    peak_flops: float
    utilization: float
    factors: Mapping[str, float]

    @property
    def has_gpu(self) -> bool:
        return self.kind != "CPU"

    def devices(self, rule: str) -> int:
        """Return the number of CPU threads or GPUs of a job; 0 GPUs if it does not compute on one."""
        if rule in COMPUTING:
            return self.together if rule in SHARED else self.alone
        return 0 if self.has_gpu else 1

    def nominal_seconds(self, rule: str, work: Work) -> float:
        """Return the seconds of a job at the machine's nominal speed, with its start."""
        speed = self.peak_flops * self.utilization
        if rule == CONVERTING and self.has_gpu:
            speed = PEAK_FLOPS["CPU"] * CPU_UTILIZATION
        rate = speed * max(1, self.devices(rule))
        computing = max((work.flops + (ANSWERING - 1) * work.answers) / rate, work.layers * LAYER_SECONDS)
        return START_SECONDS.get(rule, OTHER_START_SECONDS) + computing

    def seconds(self, rule: str, work: Work) -> float:
        """Return the estimated seconds of a job, at the speed of measured jobs if there are any."""
        computes = rule in COMPUTING or (rule == CONVERTING and not self.has_gpu)
        factor = self.factors.get(rule, self.factors.get("", 1.0)) if computes else 1.0
        return factor * self.nominal_seconds(rule, work)


def machine_of(
    compute: Compute, peak_flops: float | None = None, utilization: float | None = None
) -> Machine:
    """Return the machine that a config requests, with its nominal speed or a given one."""
    kind = f"GPU, {compute.precision}" if compute.gpu else "CPU"
    return Machine(
        kind,
        compute.gpu or compute.threads * compute.workers,
        1 if compute.gpu else compute.threads,
        peak_flops or PEAK_FLOPS[kind],
        utilization or (GPU_UTILIZATION if compute.gpu else CPU_UTILIZATION),
        {},
    )


def measured_seconds(job: Job) -> float | None:
    """Return the seconds of a finished job by its benchmark file; of a resumed job, since its last start."""
    return benchmarked_seconds(job.benchmark)


def benchmarked_seconds(file: Path) -> float | None:
    """Return the seconds in a benchmark file of Snakemake; None if there are none."""
    try:
        names, values = file.read_text().splitlines()[:2]
        return float(dict(zip(names.split("\t"), values.split("\t"), strict=True))["s"])
    except (OSError, ValueError, KeyError):
        return None


def speed_factors(
    machine: Machine, jobs: Mapping[str, Job], works: Mapping[str, Work], measured: Mapping[str, float]
) -> dict[str, float]:
    """Return the factors of a machine by jobs that were measured and compute with a model."""
    sums: dict[str, tuple[float, float]] = {}
    for key, seconds in measured.items():
        rule = jobs[key].rule
        if rule in COMPUTING and key in works:
            for group in (rule, ""):
                took, nominal = sums.get(group, (0.0, 0.0))
                sums[group] = took + seconds, nominal + machine.nominal_seconds(rule, works[key])
    return {group: took / nominal for group, (took, nominal) in sums.items()}
