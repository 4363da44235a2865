"""What benchmarks measure with, and what they print."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch

from copra.data.sequences import TokenRow
from copra.models.checkpoint import device


class TimeModel:
    """Stands where a tracker does: takes the time between the ends of two steps."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.seconds = 0.0

    def log(self, values: dict[str, Any], step: int) -> None:
        if step in (self.first, self.last):
            synchronise()
            self.seconds = time.perf_counter() - (self.seconds if step == self.last else 0.0)


def draw_rows(count: int, vocabulary: int, draw: Random) -> list[TokenRow]:
    """Rows of random tokens with the lengths of GSM8K-Aug: questions of 50 to 90, 2 to 4 steps of 10."""

    def tokens(length: int) -> list[int]:
        return [draw.randrange(10, vocabulary) for _ in range(length)]

    return [
        TokenRow(
            str(i),
            tokens(draw.randrange(50, 90)),
            [tokens(10) for _ in range(draw.choice([2, 3, 3, 4]))],
            tokens(5),
        )
        for i in range(count)
    ]


def matrix_product_speed() -> float:
    """FLOPs per second of a large product in bfloat16, on a CPU of a small one in float32."""
    size, dtype = (8192, torch.bfloat16) if device().type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, 20)


def copy_speed() -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.empty(2**30 if device().type == "cuda" else 2**22, device=device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 10)


def seconds(work: Callable[[], Any], repetitions: int = 3) -> float:
    """The median over runs after one to warm up, each until the device has finished."""
    work()
    times = []
    for _ in range(repetitions):
        synchronise()
        began = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """Gives a function that returns the peak of the GPU's memory in this context in GiB (on a CPU None)."""
    gc.collect()
    if not torch.cuda.is_available():
        yield lambda: None
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 2**30


def heading(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def line(*cells: Any) -> None:
    shown = [
        "-" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells
    ]
    print(f"| {' | '.join(shown)} |", flush=True)
