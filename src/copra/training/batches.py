"""Group samples into batches, as a function of seed and epoch, so that a resumed run gets the same ones."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from copra.data.sequences import Sample, rounded_up
from copra.utils import processes

# Batches are cut from pools of this many batches sorted by length: little padding, still random.
POOL = 50


def epoch_batches(samples: Sequence[Sample], batch_size: int, seed: int, epoch: int) -> list[list[Sample]]:
    """Return the batches of one epoch in random order, with samples of similar length together.

    Every sample occurs once; only the last batch of the epoch may be smaller.
    """
    rng = Random(f"batches {seed} {epoch}")
    order = list(range(len(samples)))
    rng.shuffle(order)
    batches = []
    for first in range(0, len(order), POOL * batch_size):
        pool = sorted(order[first : first + POOL * batch_size], key=lambda i: len(samples[i].tokens))
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return [[samples[i] for i in batch] for batch in batches]


class MicroBatch(NamedTuple):
    """Samples for one forward pass. Without `counts` they are filler, for a pass that all processes must run.

    `latents` is the largest number of latents that any process has in this pass; all run that many latent
    passes.
    """

    samples: Sequence[Sample]
    counts: bool
    latents: int


def micro_batches(
    batch: Sequence[Sample], size: int | None, tokens: int | None = None, multiple: int = 1
) -> Iterator[MicroBatch]:
    """Yield this process's share of a batch in micro-batches that fit the memory.

    A micro-batch has at most `size` rows and at most `tokens` padded tokens (rows times width), but at least
    one row. Widths are multiples of `multiple`. All processes get the same number of micro-batches, since
    they communicate in each pass; a process without samples left gets another one's again.
    """
    count, first = processes.world_size(), 0
    size = size or math.ceil(len(batch) / count)
    while first < len(batch):
        last = min(first + size * count, len(batch))
        if tokens is not None:
            last = first + count * _rows_within(batch[first:last], tokens, count, multiple)
        together = batch[first:last]
        own = processes.shard(together)
        yield MicroBatch(own or batch[:1], bool(own), max(sample.n_latents for sample in together))
        first = last


def _rows_within(samples: Sequence[Sample], tokens: int, count: int, multiple: int) -> int:
    """Return how many of the first rows of each of `count` processes fit in `tokens` padded tokens.

    `collate` pads them. The number is at least 1.
    """
    before = after = taught = 0
    for index, sample in enumerate(samples):
        # `collate` aligns the first latents in one column.
        before = max(before, sample.first_latent)
        after = max(after, len(sample.tokens) - sample.first_latent, sample.n_latents)
        taught = max(taught, len(sample.teacher.tokens) if sample.teacher else 0)
        rows = index // count + 1
        width = max(rounded_up(rounded_up(before, multiple) + after, multiple), rounded_up(taught, multiple))
        if rows > 1 and rows * width > tokens:
            return rows - 1
    return math.ceil(len(samples) / count)
