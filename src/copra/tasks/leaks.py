"""Questions compared so that a training row cannot be a test question in disguise."""

import re
import unicodedata

APOSTROPHES = re.compile("['’‘ʼ`´]")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Numbers whole, words whole, and the signs of arithmetic unless a letter touches them, as in "well-known".
# Beyond ASCII all that is left counts as a letter: vowel signs of Hindi are none by themselves.
LETTER = r"[a-z\u0080-\U0010ffff]"
PIECES = re.compile(rf"\d+(?:[.:/,]\d+)*|{LETTER}+|(?<!{LETTER})[-+*/=<>^%](?!{LETTER})")


def question_key(question: str) -> str:
    """A text that is the same for questions that a reader would call the same.

    Case, white space, punctuation, currency signs, zero-width and other invisible characters do not count,
    nor do full-width forms and ligatures (NFKC); thousands commas and apostrophes close up. Points, slashes
    and colons within numbers and signs of arithmetic do count: 1.5 is not 15, 8 - 2 is not 8 + 2.
    """
    text = APOSTROPHES.sub("", question.casefold())
    if not text.isascii():
        # Small letters once more, since NFKC makes capitals of some signs.
        text = "".join(map(_visible, unicodedata.normalize("NFKC", text).casefold().replace("−", "-")))
    return THOUSANDS.sub("", " ".join(PIECES.findall(text)))


def _visible(letter: str) -> str:
    """The letter, a space for a sign that does not count, and nothing for one that cannot be seen."""
    if letter.isascii():
        return letter
    category = unicodedata.category(letter)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" or category in ("Sc", "Sk") else letter
