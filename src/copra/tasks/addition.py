"""Long addition with a scratchpad, a test of generalization beyond the training lengths.

As in Nye 2021, arXiv 2112.00114, section 3.1, training has numbers of 1 to 8 digits and the test longer
ones. A row in their format (`hints: false`):

    2 9 + 5 7
    steps  2 9 + 5 7 , C: 0 | 2 + 5 , 6 C: 1 | , 8 6 C: 0 | 0 8 6
    answer 8 6

A small model from scratch finds digits by counting positions, which fails on longer numbers. With `hints:
true` each digit has a letter by which it can be found, as with the index hints of Zhou 2023, arXiv
2310.16028: consecutive letters from a random start in the alphabet precede the digits, lowercase in the first
number, uppercase in the second and doubled in the sum. A step adds the two digits of a column and the carry,
if any; its result is the new carry, if any, and a digit of the sum:

    k 2 l 9 + K 5 L 7
    steps  l 9 + L 7 = 1 ll 6 | k 2 + K 5 + 1 = kk 8
    answer kk 8 ll 6
"""

import random
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from copra.schema.settings import MOST_DIGITS, MOST_LATENTS, Seed
from copra.tasks.answers import AnswerKind
from copra.tasks.draws import below
from copra.tasks.task import Row, Size, Split, Task
from copra.utils.problems import shown

Digits = Annotated[int, Field(ge=1, le=MOST_DIGITS)]
LETTERS = ascii_lowercase
BLANK = "."
# Probability of a step of blanks. Below one half, so that greedy decoding does not write one.
STEPS_OF_BLANKS = 0.4
# Maximum tenths of all questions of one length per split, so that 1-digit numbers, with their 100 questions,
# occur in all three.
TENTHS: dict[Split, int] = {"test": 1, "valid": 1, "train": 8}


class Column(NamedTuple):
    """One column of a written addition: the digits of equal place value, and the carries."""

    a: int
    b: int
    carry_in: int
    carry_out: int
    digit: int


class Addition(Task):
    """Generated additions of two numbers of the same length; no pair of numbers occurs twice.

    The rows of a split cycle through its lengths. A length is skipped once its share of questions is
    used up: a tenth each for test and validation, eight tenths for training.
    """

    kind: Literal["addition"] = "addition"
    """Kind of task."""
    train: Size = 20000
    """Number of training rows. More rows never change the validation and test rows."""
    valid: Size = 500
    """Number of validation rows."""
    test: Size = 1000
    """Number of test rows."""
    min_digits: Digits = 1
    """Minimum number of digits per number in training and validation."""
    max_digits: Digits = 8
    """Maximum number of digits per number in training and validation."""
    test_digits: list[Digits] = Field(default=[9], min_length=1)
    """Numbers of digits per number in the test."""
    hints: bool = True
    """If true, letters precede the digits as index hints."""
    blanks: int = Field(0, ge=0, le=MOST_LATENTS)
    """Maximum number of blanks between the columns of the question in training and validation rows; only with
    hints. Two rows in five also have a last step of up to this number of blanks. Distances between related
    digits then vary independently of the number of digits, and the distances of longer numbers occur in
    training (as with the random spaces of Shen 2023, arXiv 2311.14737). Test rows have no blanks."""
    seed: Seed = 0
    """Seed of the generated rows."""

    @property
    def answers(self) -> AnswerKind:
        return "text"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits {self.min_digits} is above max_digits {self.max_digits}")
        if len(set(self.test_digits)) < len(self.test_digits):
            raise ValueError(f"test_digits {shown(self.test_digits)} names a length twice")
        if self.blanks and not self.hints:
            raise ValueError("blanks stand between hinted digits; write hints: true, or leave blanks out")
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
                    f"{split}: {shown(self._lengths(split))} digits give at most {most} rows, not {size}; "
                    "allow more digits, or ask for fewer rows"
                )
        return self

    def rows(self) -> Iterator[tuple[Split, Row]]:
        """Yield all rows in the order test, valid, train, so that no split depends on a larger one's size."""
        seen: set[tuple[int, ...]] = set()
        for split, size in self._sizes().items():
            rng = random.Random(f"addition {self.seed} {split}")
            for digits in _turns(split, self._lengths(split), size):
                pair = _new_pair(rng, digits, seen)
                seen.add(pair)
                start = below(rng, len(LETTERS))
                row = write_sum(pair[:digits], pair[digits:], start if self.hints else None)
                yield split, row if split == "test" else _with_blanks(rng, row, self.blanks)

    def _sizes(self) -> dict[Split, int]:
        return {"test": self.test, "valid": self.valid, "train": self.train}

    def _lengths(self, split: Split) -> list[int]:
        return self.test_digits if split == "test" else list(range(self.min_digits, self.max_digits + 1))


def write_sum(a: Sequence[int], b: Sequence[int], start: int | None = None) -> Row:
    """Return the row that adds two numbers of equal length, given as digits, most significant first.

    `start` is the index in the alphabet of the letter before their first digits (None: no letters).
    """
    columns = _columns(a, b)
    total = [columns[-1].carry_out, *(column.digit for column in reversed(columns))]
    answer = total[0 if total[0] else 1 :]
    if start is None:
        return Row(
            f"{_spaced(a)} + {_spaced(b)}", (*_shrinking(a, b, columns), _spaced(total)), _spaced(answer)
        )
    # One letter more than digits: the first one is for a final carry.
    letters = [LETTERS[(start - 1 + index) % len(LETTERS)] for index in range(len(total))]
    capitals = [letter.upper() for letter in letters]
    doubled = [letter * 2 for letter in letters]
    question = f"{_hinted(letters[1:], a)} + {_hinted(capitals[1:], b)}"
    # A missing carry is not written: steps then differ in length, so that a digit can be found by its letter,
    # but not by its distance.
    steps = tuple(
        f"{letter} {column.a} + {letter.upper()} {column.b}{' + 1' * column.carry_in}"
        f" ={' 1' * column.carry_out} {letter * 2} {column.digit}"
        for letter, column in zip(reversed(letters[1:]), columns, strict=True)
    )
    return Row(question, steps, _hinted(doubled[-len(answer) :], answer))


def _most_rows(split: Split, digits: int) -> int:
    pairs = (10 if digits == 1 else 9 * 10 ** (digits - 1)) ** 2
    return pairs * TENTHS[split] // 10


def _turns(split: Split, lengths: Sequence[int], size: int) -> Iterator[int]:
    """Yield `size` lengths in turn, each at most as often as it has rows for the split."""
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
    """Return the digits of a new pair of numbers, concatenated; only 1-digit numbers may be 0."""
    while True:
        pair = tuple(
            1 + below(rng, 9) if digits > 1 and index in (0, digits) else below(rng, 10)
            for index in range(2 * digits)
        )
        if pair not in seen:
            return pair


def _with_blanks(rng: random.Random, row: Row, most: int) -> Row:
    """Return the row with up to `most` blanks in its question, and at random a last step of blanks."""
    if not most:
        return row
    words = row.question.split()
    letters = [index for index, word in enumerate(words) if word.isalpha()]
    for _ in range(below(rng, most + 1)):
        index = letters[below(rng, len(letters))]
        words[index] = f"{BLANK} {words[index]}"
    step = (" ".join([BLANK] * (1 + below(rng, most))),) if rng.random() < STEPS_OF_BLANKS else ()
    return Row(" ".join(words), row.steps + step, row.answer)


def _columns(a: Sequence[int], b: Sequence[int]) -> list[Column]:
    """Return the columns, least significant first."""
    columns, carry = [], 0
    for left, right in zip(reversed(a), reversed(b), strict=True):
        carry_out, digit = divmod(left + right + carry, 10)
        columns.append(Column(left, right, carry, carry_out, digit))
        carry = carry_out
    return columns


def _shrinking(a: Sequence[int], b: Sequence[int], columns: Sequence[Column]) -> Iterator[str]:
    """Yield Nye's lines: the digits left to add, the digits of the sum so far, and the carry after "C:"."""
    for done in range(len(columns) + 1):
        left = len(columns) - done
        rest = f"{_spaced(a[:left])} + {_spaced(b[:left])} " if left else ""
        digits = "".join(f" {column.digit}" for column in reversed(columns[:done]))
        yield f"{rest},{digits} C: {columns[done - 1].carry_out if done else 0}"


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))


def _hinted(letters: Sequence[str], digits: Sequence[int]) -> str:
    return " ".join(f"{letter} {digit}" for letter, digit in zip(letters, digits, strict=True))
