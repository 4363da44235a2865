"""Random draws for generated tasks.

Python guarantees the same sequence in every version only for random(), so all draws are made from it.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def below(rng: random.Random, limit: int) -> int:
    """Return a random integer from 0 to `limit` - 1."""
    return int(rng.random() * limit)


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """Return a random item."""
    return items[below(rng, len(items))]


def shuffled(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    """Return the items in a random order."""
    return sorted(items, key=lambda _: rng.random())
