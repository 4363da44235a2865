"""Multiplication with its partial products, in the text format of iCoT (arXiv 2311.01460 and 2405.14838).

A row of the published data, 2365 * 4347, least significant digits first:

    5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 )
        + 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1

The chain holds the first factor times each digit of the second, with leading zeros for the digit's place, and
in brackets the sum so far; the last sum is the answer. Numbers are padded with zeros to the width of the
largest of their kind. A step here is one partial product with the sum after it.
"""

import random
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from copra.schema.settings import MOST_DIGITS
from copra.tasks.answers import AnswerKind
from copra.tasks.draws import below
from copra.tasks.generated import GeneratedTask
from copra.tasks.task import Row

DIGITS = r"[0-9](?: [0-9])*"
QUESTION = re.compile(rf"{DIGITS} \* {DIGITS}")
STEP = re.compile(rf"(?:\+ )?{DIGITS}(?: \( {DIGITS} \))?")


class Multiplication(GeneratedTask):
    """Products of two numbers, generated, or read from files with lines `question||chain #### answer`."""

    kind: Literal["multiplication"] = "multiplication"
    """Kind of task."""
    digits: int = Field(4, ge=1, le=MOST_DIGITS)
    """Number of digits of the first factor in generated rows."""
    second_digits: int = Field(4, ge=1, le=MOST_DIGITS)
    """Number of digits of the second factor in generated rows, which is also the number of steps."""

    @property
    def answers(self) -> AnswerKind:
        return "text"

    def draw(self, rng: random.Random) -> Row:
        """Return the row of two uniformly drawn numbers without leading zeros."""
        return written_out(
            *(
                10 ** (digits - 1) + below(rng, 9 * 10 ** (digits - 1))
                for digits in (self.digits, self.second_digits)
            )
        )

    def records(self, content: bytes) -> list[bytes]:
        """Return the lines of a file."""
        return content.rstrip().split(b"\n") if content.strip() else []

    def read(self, record: bytes) -> Row:
        """Return the row in one line."""
        try:
            text = " ".join(record.decode().split())
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
        question, bars, solution = text.partition("||")
        if not bars:
            raise ValueError("no '||' between question and steps")
        chain, mark, answer = (part.strip() for part in solution.rpartition("####"))
        if not mark:
            raise ValueError("no '####' before the answer")
        question = question.strip()
        if not QUESTION.fullmatch(question):
            raise ValueError(f"the question {question!r} is no product of spaced digits, such as '2 1 * 4 3'")
        if not re.fullmatch(DIGITS, answer):
            raise ValueError(f"the answer {answer!r} is no number of spaced digits")
        steps = tuple(re.split(r" (?=\+)", chain)) if chain else ()
        for step in steps:
            if not STEP.fullmatch(step):
                raise ValueError(f"the step {step!r} is no partial product, such as '+ 0 2 1 ( 4 5 1 )'")
        return Row(question, steps, answer)


def written_out(a: int, b: int) -> Row:
    """Return the row of a * b."""
    width = len(str(a))
    places = len(str(b))
    return Row(
        f"{_reversed(a, width)} * {_reversed(b, places)}",
        tuple(_steps(a, b, width, places)),
        _reversed(a * b, width + places),
    )


def _steps(a: int, b: int, width: int, places: int) -> Iterator[str]:
    for place in range(places):
        low = b % 10 ** (place + 1)
        partial = _reversed(a * (low - b % 10**place), width + 1 + place)
        if place == 0:
            yield partial
        elif place < places - 1:
            yield f"+ {partial} ( {_reversed(a * low, width + 1 + place)} )"
        else:
            yield f"+ {partial}"


def _reversed(number: int, width: int) -> str:
    """Return the digits, least significant first, with zeros at the end up to the width."""
    return " ".join(reversed(f"{number:0{width}d}"))
