"""Finding the answer in a generated text, and comparing it with the gold answer."""

import re
from typing import Literal

from copra.tasks.numbers import read_number

MARKER = "###"
# The last match of lm-evaluation-harness's `gsm8k_cot` filter "flexible-extract", whose pattern is
# (-?[$0-9.,]{2,})|(-?[0-9]+); only a denominator is added, and a whole number before it, so that "1/2" and
# "5 1/2" are one number each.
NUMBER_IN_TEXT = re.compile(
    r"(?:-?[0-9][0-9,]* (?=[0-9]+/[0-9]))?(?:-?[$0-9.,]{2,}|-?[0-9]+)(?:/[0-9][0-9.,]*)?"
)
STATED = {
    # Its filter "strict-match", with all that it misses: a currency sign, a number that the text ends with.
    "number": re.compile(r"The answer is (-?[0-9.,]+)."),
    # What is no number is stated up to its full stop or the end of its line.
    "text": re.compile(r"The answer is ([^\n]+?)(?:\.(?=\s|$)|\n|$)"),
}


def extract_answer(
    text: str,
    prompted: Literal["strict", "flexible"] | None = None,
    kind: Literal["number", "text"] = "number",
) -> str | None:
    """The answer that a generated text gives, or None where it gives none.

    A trained model writes `### answer` (or `#### answer`, as GSM8K does): the answer is what follows
    the last marker up to the end of its line. A model that was only prompted has learned no marker:
    its answer is the last number of the text ("flexible"), or what the first "The answer is ...." states
    ("strict"). Numbers are found as lm-evaluation-harness finds them.
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


def same_answer(extracted: str | None, gold: str, kind: Literal["number", "text"]) -> bool:
    """True if an extracted answer equals the gold answer.

    Numbers are compared exactly, as fractions: "$1,000." is 1000, "0.50" is 1/2; `copra.tasks.numbers`
    lists every form. What is not a number equals no number. Texts are compared without regard to case, white
    space and a final full stop.
    """
    if extracted is None:
        return False
    if kind == "text":
        return _normalized(extracted) == _normalized(gold)
    value = read_number(extracted)
    return value is not None and value == read_number(gold)


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
