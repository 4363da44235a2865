"""Normalization of questions, to detect test questions among training rows."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from copra.tasks.task import Row

APOSTROPHES = re.compile("['’‘ʼ`´]")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Whole numbers, whole words, and arithmetic signs that touch no letter (unlike the hyphen of "well-known").
# Every remaining non-ASCII character counts as a letter, since Hindi vowel signs are not letters in Unicode.
LETTER = r"[a-z\u0080-\U0010ffff]"
PIECES = re.compile(rf"\d+(?:[.:/,]\d+)*|{LETTER}+|(?<!{LETTER})[-+*/=<>^%](?!{LETTER})")


def question_key(question: str) -> str:
    """Return a key that is equal for questions that a reader would consider the same.

    Case, white space, punctuation, currency signs, invisible characters such as zero-width ones, full-width
    forms and ligatures (NFKC) are normalized away; thousands commas and apostrophes are removed. Points,
    slashes and colons within numbers and arithmetic signs are kept: 1.5 is not 15, 8 - 2 is not 8 + 2.
    """
    text = APOSTROPHES.sub("", question.casefold())
    if not text.isascii():
        # Case folding again, since NFKC converts some signs to capitals.
        text = "".join(map(_visible, unicodedata.normalize("NFKC", text).casefold().replace("−", "-")))
    return THOUSANDS.sub("", " ".join(PIECES.findall(text)))


def question_keys(rows: Iterable[Row]) -> set[str]:
    """Return the keys of the questions of rows."""
    return {question_key(row.question) for row in rows}


def without_questions(rows: Sequence[Row], keys: set[str]) -> list[Row]:
    """Return the rows whose question has none of these keys."""
    return [row for row in rows if question_key(row.question) not in keys]


def _visible(letter: str) -> str:
    """Return the character itself, a space for an ignored sign, or nothing for an invisible character."""
    if letter.isascii():
        return letter
    category = unicodedata.category(letter)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" or category in ("Sc", "Sk") else letter
