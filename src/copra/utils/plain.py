"""Check that a config consists of plain values, which JSON can represent."""

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

from copra.utils.errors import CopraError
from copra.utils.problems import dotted, shown

LARGEST = 2**53
"""Maximum absolute value of numbers; beyond it, float64 does not represent every integer."""
DEEPEST = 50
"""Maximum nesting of mappings and lists; a config has ten levels at most."""
MOST_VALUES = 10**6
"""Maximum number of values, repeated aliases included: a few lines of nested aliases can make billions."""


def check_plain(value: Any, source: str) -> None:
    """Check that a value consists of mappings, lists, texts, finite numbers, booleans and nulls.

    Raises:
        CopraError: one line per part that is something else, or one line about a value that is nested too
        deeply or too large to be checked.
    """
    sizes: dict[int, tuple[int, int]] = {}
    _measure(value, 0, sizes, source)
    if problems := dict.fromkeys(_problems(value, ())):
        raise CopraError("\n".join(f"{source}: {problem}" for problem in problems))


def _measure(value: Any, depth: int, sizes: dict[int, tuple[int, int]], source: str) -> tuple[int, int]:
    """Return the number of values in a value, and its nesting levels. Repeated objects are visited once."""
    if not isinstance(value, Mapping | list):
        return 1, 0
    if id(value) not in sizes:
        parts = value.values() if isinstance(value, Mapping) else value
        measured = [_measure(part, depth + 1, sizes, source) for part in parts] if depth <= DEEPEST else []
        size, levels = 1 + sum(size for size, _ in measured), 1 + max((n for _, n in measured), default=0)
        if depth + levels > DEEPEST:
            raise CopraError(f"{source}: values are nested more than {DEEPEST} levels deep. Flatten it.")
        if size > MOST_VALUES:
            raise CopraError(
                f"{source}: there are more than {MOST_VALUES:,} values, counting what aliases repeat. Take "
                "some out."
            )
        sizes[id(value)] = size, levels
    elif depth + sizes[id(value)][1] > DEEPEST:
        raise CopraError(f"{source}: values are nested more than {DEEPEST} levels deep. Flatten it.")
    return sizes[id(value)]


def _problems(value: Any, path: tuple[Any, ...]) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                yield f"{dotted((*path, key))}: the key is no text to YAML. Put it in quotes."
            else:
                yield from (f"{dotted((*path, key))}: the key {problem}" for problem in _scalar_problems(key))
                yield from _problems(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _problems(part, (*path, index))
    else:
        where = f"{dotted(path)}: " if path else ""
        yield from (f"{where}{shown(value)} {problem}" for problem in _scalar_problems(value))


def _scalar_problems(value: Any) -> Iterator[str]:
    if isinstance(value, int) and abs(value) > LARGEST:
        yield "is beyond 2^53. Give a smaller number."
    elif isinstance(value, float) and not math.isfinite(value):
        yield "is no finite number. Give one, or leave the key out."
    elif isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        yield "has a character that no file can hold. Take it out."
    elif isinstance(value, datetime.date):
        yield "is a date to YAML. Put it in quotes if it is meant as text."
    elif value is not None and not isinstance(value, str | int | float):
        yield f"is a {type(value).__name__}, which no key takes. Give text, a number, a list or a mapping."
