"""The rates of a training (tokens/s, TFLOP/s, MFU) and its peak memory, for live display."""

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from copra.cost.flops import of_training_work
from copra.data.sequences import STATE_READERS
from copra.methods.reasoning_model import ReasoningModel
from copra.models.shape import shape_of
from copra.schema.settings import Precision
from copra.training.progress import Progress

PEAKS: dict[str, dict[Precision, float]] = {
    "GH200": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "H200": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "H100 NVL": {"bfloat16": 835.5, "tf32": 417.7, "float32": 60.0},
    "H100 PCIe": {"bfloat16": 756.4, "tf32": 378.2, "float32": 51.2},
    "H100": {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    "A100": {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
    "L40S": {"bfloat16": 362.1, "tf32": 183.2, "float32": 91.6},
    "RTX 4090": {"bfloat16": 165.2, "tf32": 82.6, "float32": 82.6},
    "L4": {"bfloat16": 121.0, "tf32": 60.0, "float32": 30.3},
    "V100": {"float32": 15.7},
    "T4": {"float32": 8.1},
}
"""TFLOP/s of dense matrix products in NVIDIA's data sheets, by words of the device's name. The first match
counts."""


def peak_tflops(device: str, precision: Precision) -> float | None:
    """Return the peak TFLOP/s of a device by its name, or None if the table does not list it."""
    words = device.replace("-", " ").split()
    for name, peaks in PEAKS.items():
        if set(name.split()) <= set(words):
            return peaks.get(precision)
    return None


@dataclass
class Speed:
    """The rates of a training between two calls of `rates`.

    TFLOP/s are the FLOPs of `copra.cost.flops.of_training_work`: forward and backward, attention scores
    of each position with its whole row, without padding and recomputation. MFU (model FLOPs utilization,
    arXiv 2204.02311, appendix B) is that divided by the device's peak in the used precision and by the
    number of processes.
    """

    reasoner: ReasoningModel
    step_decoder: int | None
    precision: Precision
    processes: int = 1
    lora: int | None = None
    counted: dict[str, list[int]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    latest: dict[str, float] = field(default_factory=dict)

    def start(self, progress: Progress) -> None:
        """Start measuring, leaving out work from before an interruption."""
        self.counted = {reader: list(sums) for reader, sums in progress.work.items()}
        self.since = time.monotonic()

    def rates(self, progress: Progress) -> dict[str, float]:
        """Return tokens/s and TFLOP/s since the last call, MFU if the peak is known, and peak memory.

        The peak memory in GiB is the GPU allocator's, or the process's on a CPU.
        """
        now, work = time.monotonic(), {}
        for reader, sums in progress.work.items():
            before = self.counted.get(reader, [0, 0, 0])
            done = [value - known for value, known in zip(sums, before, strict=True)]
            work[reader] = dict(zip(("tokens", "context", "supervised"), done, strict=True))
        seconds = max(now - self.since, 1e-9)
        self.start(progress)
        rates = {
            "tokens_per_second": _tokens(work) / seconds,
            "tflops": self._flops(work) / seconds / 1e12,
        }
        device = self.reasoner.device
        if device.type != "cuda":
            # Linux reports ru_maxrss in KiB.
            rates["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        else:
            if peak := peak_tflops(torch.cuda.get_device_name(device), self.precision):
                rates["mfu"] = rates["tflops"] / peak / self.processes
            rates["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        self.latest = rates
        return rates

    def _flops(self, work: Mapping[str, Mapping[str, int]]) -> float:
        teacher = self.reasoner.teacher
        shape = shape_of(self.reasoner.model.config.to_dict())
        taught_by = None if teacher is None else shape_of(teacher.model.config.to_dict())
        return of_training_work(shape, work, self.step_decoder, taught_by, self.lora)


def _tokens(work: Mapping[str, Mapping[str, int]]) -> int:
    """Return the number of sequence tokens, without single states (`STATE_READERS`)."""
    return sum(each["tokens"] for reader, each in work.items() if reader not in STATE_READERS)
