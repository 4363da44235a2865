"""Which samples make a batch (no torch): a function of seed and epoch, so that a resumed run agrees."""

from collections.abc import Iterator, Sequence
from random import Random

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


def micro_batches(batch: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """A batch in parts that fit the memory."""
    size = size or len(batch)
    for first in range(0, len(batch), size):
        yield batch[first : first + size]
