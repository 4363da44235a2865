"""Questions compared so that a training row cannot be a test question in disguise."""

import re
import unicodedata

APOSTROPHES = re.compile("['’‘ʼ`´]")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Numbers whole, words whole, and the signs of arithmetic unless a letter touches them, as in "well-known".
PIECES = re.compile(r"\d+(?:[.:/,]\d+)*|[^\W\d_]+|(?<![^\W\d_])[-+*/=<>^%](?![^\W\d_])")


def question_key(question: str) -> str:
    """What two questions have in common that a reader would call the same.

    Without case, accents of form (NFKC: full-width letters, ligatures), white space, zero-width and other
    invisible characters, currency signs and punctuation; thousands commas and apostrophes close up. Points,
    slashes and colons within numbers and signs of arithmetic stay: 1.5 is not 15, 8 - 2 is not 8 + 2.
    """
    text = question.casefold()
    if not text.isascii():
        # Small letters once more: NFKC makes capitals of some signs.
        text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    pieces = PIECES.findall(APOSTROPHES.sub("", text))
    return THOUSANDS.sub("", " ".join(pieces))
