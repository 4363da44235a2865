"""Which samples make a batch (no torch): a function of seed and epoch, so that a resumed run agrees."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from copra import processes
from copra.reasoning.layout import Sample

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


def micro_batches(batch: Sequence[Sample], size: int | None) -> Iterator[Part]:
    """This process's part of a batch, in parts that fit the memory.

    All processes get equally many, since they meet in each pass; one that has run out of samples gets
    somebody's once more.
    """
    most = math.ceil(len(batch) / processes.count())
    size = size or most
    for first in range(0, most, size):
        together = batch[first * processes.count() : (first + size) * processes.count()]
        own = processes.share(together)
        yield Part(own or batch[:1], bool(own), max(sample.n_latents for sample in together))
