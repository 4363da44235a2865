"""Extraction of the answer from a generated text, and comparison with the gold answer."""

import re
from fractions import Fraction
from typing import Literal

from copra.tasks.numbers import read_number

AnswerKind = Literal["number", "text"]
"""Comparison of two answers: as numbers, or as normalized text."""
MARKER = "###"
# The pattern of lm-evaluation-harness's `gsm8k_cot` filter "flexible-extract", which takes the last match of
# (-?[$0-9.,]{2,})|(-?[0-9]+); extended only by a denominator and a whole number before the fraction, so that
# "1/2" and "5 1/2" are one number each.
NUMBER_IN_TEXT = re.compile(
    r"(?:-?[0-9][0-9,]* (?=[0-9]+/[0-9]))?(?:-?[$0-9.,]{2,}|-?[0-9]+)(?:/[0-9][0-9.,]*)?"
)
STATED: dict[AnswerKind, re.Pattern[str]] = {
    # Its filter "strict-match", including its misses: a currency sign, a number at the end of the text.
    "number": re.compile(r"The answer is (-?[0-9.,]+)."),
    # An answer that is not a number ends at its full stop or at the end of its line.
    "text": re.compile(r"The answer is ([^\n]+?)(?:\.(?=\s|$)|\n|$)"),
}


def extract_answer(
    text: str,
    prompted: Literal["strict", "flexible"] | None = None,
    kind: AnswerKind = "number",
) -> str | None:
    """Return the answer in a generated text, or None if there is none.

    A trained model writes `### answer` (or `#### answer`, as in GSM8K): the answer is the text after the last
    marker, up to the end of its line. A prompted model has not been trained to write a marker: its answer is
    the last number of the text ("flexible"), or the text after the first "The answer is" ("strict"). Numbers
    are matched as in lm-evaluation-harness.
    """
    if prompted == "flexible":
        numbers = NUMBER_IN_TEXT.findall(text)
        return numbers[-1] if numbers else None
    if prompted == "strict":
        stated = STATED[kind].search(text)
        return stated[1].strip() if stated else None
    _, marker, rest = text.rpartition(MARKER)
    answer = rest.partition("\n")[0].strip() if marker else ""
    return answer or None


def same_answer(extracted: str | None, gold: str, kind: AnswerKind) -> bool:
    """True if an extracted answer equals the gold answer.

    Numbers are compared exactly, as fractions: "$1,000." is 1000, "0.50" is 1/2; `copra.tasks.numbers`
    lists every form. A text that is not a number equals no number. Texts are compared without regard to case,
    white space and a final full stop.
    """
    if extracted is None:
        return False
    value = answer_value(extracted, kind)
    return value is not None and value == answer_value(gold, kind)


def answer_value(answer: str, kind: AnswerKind) -> Fraction | str | None:
    """Return a value that equal answers share: the number (None if it is none), or the normalized text."""
    return _normalized(answer) if kind == "text" else read_number(answer)


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
