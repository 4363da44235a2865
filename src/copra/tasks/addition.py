"""Long addition with a scratchpad, for the question whether a skill reaches beyond its training lengths.

Nye 2021, arXiv 2112.00114, section 3.1: train on 1 to 8 digits, test on more. A row of theirs (`hints: false`):

    2 9 + 5 7
    steps  2 9 + 5 7 , C: 0 | 2 + 5 , 6 C: 1 | , 8 6 C: 0 | 0 8 6
    answer 8 6

Small models from scratch find digits by counting positions, which fails on longer numbers. Index hints
(Zhou 2023, arXiv 2310.16028) let them look digits up instead: a letter stands before every digit, equal
letters before digits of equal weight, and the run of letters starts anywhere in the alphabet. The same row
with `hints: true`, a step being "letter digit + digit + carry = carry digit":

    k 2 l 9 + k 5 l 7
    steps  l 9 + 7 + 0 = 1 6 | k 2 + 5 + 1 = 0 8
    answer k 8 l 6
"""

import random
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from copra.tasks.draws import below
from copra.tasks.task import Row, Split, Task

LETTERS = ascii_lowercase
# At most so many tenths of all questions of one length go to a split, so that 1-digit numbers, with their
# 100 questions, reach all three.
TENTHS: dict[Split, int] = {"test": 1, "valid": 1, "train": 8}


class Column(NamedTuple):
    """The digits of equal weight in a written addition."""

    a: int
    b: int
    carry_in: int
    carry_out: int
    digit: int


class Addition(Task):
    """Generated additions of two numbers of the same length; no pair of numbers occurs twice.

    The lengths of a split take turns until its rows are complete; one whose questions are used up, see
    `TENTHS`, is left out from there on.
    """

    kind: Literal["addition"] = "addition"
    """Which task this is."""
    train: PositiveInt = 20000
    """Number of training rows. More rows never change the validation and test rows."""
    valid: PositiveInt = 500
    """Number of validation rows."""
    test: PositiveInt = 1000
    """Number of test rows."""
    min_digits: PositiveInt = 1
    """Fewest digits of a number in training and validation."""
    max_digits: PositiveInt = 8
    """Most digits of a number in training and validation."""
    test_digits: list[PositiveInt] = Field(default=[9], min_length=1)
    """Digits of the numbers in the test."""
    hints: bool = True
    """Whether letters stand before the digits."""
    seed: int = 0
    """Another seed draws other rows."""

    answers = "text"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits {self.min_digits} is above max_digits {self.max_digits}")
        if len(set(self.test_digits)) < len(self.test_digits):
            raise ValueError(f"test_digits {self.test_digits} names a length twice")
        longest = max(self.max_digits, *self.test_digits)
        if self.hints and longest >= len(LETTERS):
            raise ValueError(
                f"hints: sums of {longest}-digit numbers need {longest + 1} letters, but there are "
                f"{len(LETTERS)}; lower max_digits and test_digits, or write hints: false"
            )
        for split, size in self._sizes().items():
            most = sum(_most_rows(split, digits) for digits in self._lengths(split))
            if size > most:
                raise ValueError(
                    f"{split}: there are {most} rows of {self._lengths(split)} digits, not {size}; "
                    "allow more digits, or ask for fewer rows"
                )
        return self

    def rows(self) -> Iterator[tuple[Split, Row]]:
        """Every row: test, valid, train, so that a split never depends on the size of a larger one."""
        seen: set[tuple[int, ...]] = set()
        for split, size in self._sizes().items():
            rng = random.Random(f"addition {self.seed} {split}")
            for digits in _turns(split, self._lengths(split), size):
                pair = _new_pair(rng, digits, seen)
                seen.add(pair)
                start = below(rng, len(LETTERS))
                yield split, _row(pair[:digits], pair[digits:], start if self.hints else None)

    def _sizes(self) -> dict[Split, int]:
        return {"test": self.test, "valid": self.valid, "train": self.train}

    def _lengths(self, split: Split) -> list[int]:
        return self.test_digits if split == "test" else list(range(self.min_digits, self.max_digits + 1))


def _most_rows(split: Split, digits: int) -> int:
    pairs = (10 if digits == 1 else 9 * 10 ** (digits - 1)) ** 2
    return pairs * TENTHS[split] // 10


def _turns(split: Split, lengths: Sequence[int], size: int) -> Iterator[int]:
    """`size` lengths in turn, none more often than it has rows for the split."""
    left = {digits: _most_rows(split, digits) for digits in lengths}
    while True:
        for digits in lengths:
            if size == 0:
                return
            if left[digits]:
                left[digits] -= 1
                size -= 1
                yield digits


def _new_pair(rng: random.Random, digits: int, seen: set[tuple[int, ...]]) -> tuple[int, ...]:
    """The digits of two new numbers, one after the other; only 1-digit numbers may be 0."""
    while True:
        pair = tuple(
            1 + below(rng, 9) if digits > 1 and index in (0, digits) else below(rng, 10)
            for index in range(2 * digits)
        )
        if pair not in seen:
            return pair


def _row(a: Sequence[int], b: Sequence[int], start: int | None) -> Row:
    """The row of a sum; `start` is the place in the alphabet where the letters start (None: no letters)."""
    columns = _columns(a, b)
    total = [columns[-1].carry_out, *(column.digit for column in reversed(columns))]
    if start is None:
        question = f"{_spaced(a)} + {_spaced(b)}"
        return Row(question, (*_shrinking(a, b, columns), _spaced(total)), _spaced(_number(total)))
    # One letter more than digits: the one in front is that of a final carry.
    letters = [LETTERS[(start + index) % len(LETTERS)] for index in range(len(total))]
    question = f"{_hinted(letters[1:], a)} + {_hinted(letters[1:], b)}"
    steps = tuple(
        f"{letter} {column.a} + {column.b} + {column.carry_in} = {column.carry_out} {column.digit}"
        for letter, column in zip(reversed(letters), columns, strict=False)
    )
    answer = _number(total)
    return Row(question, steps, _hinted(letters[-len(answer) :], answer))


def _columns(a: Sequence[int], b: Sequence[int]) -> list[Column]:
    """The columns from the least significant on."""
    columns, carry = [], 0
    for left, right in zip(reversed(a), reversed(b), strict=True):
        carry_out, digit = divmod(left + right + carry, 10)
        columns.append(Column(left, right, carry, carry_out, digit))
        carry = carry_out
    return columns


def _shrinking(a: Sequence[int], b: Sequence[int], columns: Sequence[Column]) -> Iterator[str]:
    """Nye's lines: what is left to add, the digits of the sum so far, and the carry after "C:"."""
    for done in range(len(columns) + 1):
        left = len(columns) - done
        rest = f"{_spaced(a[:left])} + {_spaced(b[:left])} " if left else ""
        digits = "".join(f" {column.digit}" for column in reversed(columns[:done]))
        yield f"{rest},{digits} C: {columns[done - 1].carry_out if done else 0}"


def _number(digits: Sequence[int]) -> Sequence[int]:
    """Digits of a sum without the zero in front."""
    return digits[1:] if digits[0] == 0 else digits


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))


def _hinted(letters: Sequence[str], digits: Sequence[int]) -> str:
    return " ".join(f"{letter} {digit}" for letter, digit in zip(letters, digits, strict=True))
