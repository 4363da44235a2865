"""Which samples make a batch: a function of seed and epoch, so that a resumed run agrees."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from copra.data.sequences import Sample, rounded_up
from copra.utils import processes

# Batches are cut from pools of this many batches sorted by length: little padding, still random.
POOL = 50


def epoch_batches(samples: Sequence[Sample], batch_size: int, seed: int, epoch: int) -> list[list[Sample]]:
    """The batches of one epoch, samples of similar length together, in random order.

    Every sample occurs once; only the last batch of the epoch may be smaller.
    """
    draw = Random(f"batches {seed} {epoch}")
    order = list(range(len(samples)))
    draw.shuffle(order)
    batches = []
    for first in range(0, len(order), POOL * batch_size):
        pool = sorted(order[first : first + POOL * batch_size], key=lambda i: len(samples[i].tokens))
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    draw.shuffle(batches)
    return [[samples[i] for i in batch] for batch in batches]


class Part(NamedTuple):
    """Samples for one forward pass; where they do not count, other processes still wait for the pass.

    `latents` is the largest number of latents that a process has in this pass: all take as many turns.
    """

    samples: Sequence[Sample]
    counts: bool
    latents: int


def micro_batches(
    batch: Sequence[Sample], size: int | None, tokens: int | None = None, multiple: int = 1
) -> Iterator[Part]:
    """This process's part of a batch, in parts that fit the memory: of `size` rows at most, and of `tokens`
    padded tokens (rows times width) at most, but of one row at least. Widths are multiples of `multiple`.

    All processes get equally many, since they meet in each pass; one that has run out of samples gets
    somebody's once more.
    """
    count, first = processes.world_size(), 0
    size = size or math.ceil(len(batch) / count)
    while first < len(batch):
        last = min(first + size * count, len(batch))
        if tokens is not None:
            last = first + count * _rows_within(batch[first:last], tokens, count, multiple)
        together = batch[first:last]
        own = processes.shard(together)
        yield Part(own or batch[:1], bool(own), max(sample.n_latents for sample in together))
        first = last


def _rows_within(samples: Sequence[Sample], tokens: int, count: int, multiple: int) -> int:
    """How many rows, the first ones of each of `count` processes, make no more than `tokens` padded tokens,
    as `collate` pads them; at least one."""
    before = after = taught = 0
    for index, sample in enumerate(samples):
        # First latents stand below each other.
        before = max(before, sample.first_latent)
        after = max(after, len(sample.tokens) - sample.first_latent, sample.n_latents)
        taught = max(taught, len(sample.teacher.tokens) if sample.teacher else 0)
        rows = index // count + 1
        width = max(rounded_up(rounded_up(before, multiple) + after, multiple), rounded_up(taught, multiple))
        if rows > 1 and rows * width > tokens:
            return rows - 1
    return math.ceil(len(samples) / count)
