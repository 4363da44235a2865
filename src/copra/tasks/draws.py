"""Draws that tasks are generated from.

Only random() is promised to give the same numbers in every version of Python, so all draws are made
from it.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def below(rng: random.Random, limit: int) -> int:
    """A whole number from 0 to `limit` - 1."""
    return int(rng.random() * limit)


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """One of the items."""
    return items[below(rng, len(items))]


def shuffled(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    """The items in a random order."""
    return sorted(items, key=lambda _: rng.random())
