r"""Parser for the number that a text states, both for generated answers and for those of a data set.

The text must state exactly one number. The table lists what may surround it. No number is picked from
several, so that a longer answer never has a better chance to be right.

| written | read as | why |
|---|---|---|
| `18`, `+18`, `18.`, `18,`, `18.0`, `.5` | 18, and 1/2 | punctuation may follow |
| `-18`, `−18`, `–18` | -18 | the minus sign and the en dash count as a hyphen |
| `1,000`, `1,234,567.5`, `1 000` | 1000, 1234567.5, 1000 | groups of three digits |
| `1,00`, `1,0000`, `1,00,000` | no number | a decimal comma or a slip: which one is not known |
| `1.000,50`, `1.000.000` | no number | `1.000` is 1: a point is always a decimal point |
| `1/2`, `3.5/7` | 1/2 | numerator and denominator |
| `5 1/2`, `-5 1/2` | 11/2, -11/2 | a whole number and a proper fraction |
| `1/0`, `5 3/2`, `5 1`, `1/2/3` | no number | |
| `$18`, `-$18`, `$-18`, `18 €`, `£ 18`, `¥18`, `₹18` | 18, or -18 | currencies are dropped, not converted |
| `50%`, `50 percent` | 50 | as GSM8K's own answers have it |
| `18 dollars`, `18 square feet` | 18 | one to three words after a space are a unit |
| `18 thousand`, `18 k`, `2 dozen`, `18 and a half`, `18 or so` | no number | the word changes the number |
| `18km`, `1e3`, `0x12`, `10:30` | no number | |
| `**18**`, `*18*`, `__18__`, `"18"`, and in backticks | 18 | Markdown and quotes |
| `\boxed{18}`, `\(18\)`, `$18$`, `\$18` | 18 | of LaTeX, these only |
| `(18)`, `[18]` | 18 | brackets; not an accountant's minus |
| `x = 18`, `Total cost = $18` | 18 | a name of one to four words |
| `48/2 = 24`, `18 or 19`, `18, 19` | no number | more than one |
| `٣`, `４` | no number | digits are 0 to 9 |
| more than 1,000 characters | no number | |
"""

import re
from fractions import Fraction
from itertools import takewhile

from copra.utils.problems import shown

LONGEST = 1000
UNIT_WORDS = 3
NOT_UNITS = frozenset(
    (
        *("hundred", "hundreds", "thousand", "thousands", "million", "millions", "billion", "billions"),
        *("trillion", "trillions", "dozen", "dozens", "score", "pair", "pairs", "k", "m", "b"),
        *("half", "halves", "third", "thirds", "quarter", "quarters", "tenth", "tenths", "squared", "cubed"),
        *("and", "or", "to", "plus", "minus", "times", "over", "less", "point"),
    )
)
"""Words that change the value of the number before them, or that begin another number."""
WRAPPERS = (
    ("\\boxed{", "}"),
    ("\\(", "\\)"),
    *((sign, sign) for sign in ("**", "__", "*", "`", '"', "'", "$")),
    ("“", "”"),
    ("(", ")"),
    ("[", "]"),
)
NAMED = re.compile(r"[^\W\d_]+(?: [^\W\d_]+){0,3} ?= ?")
CURRENCY = re.compile(r"\\?[$€£¥₹]+")
PERCENT = re.compile(r" ?\\?%$")
MINUS = str.maketrans("−–", "--")
WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
BARE = re.compile(rf"([+-]?)(?:({WHOLE}) (?=[1-9][0-9]*/))?({DECIMAL})(?:/({DECIMAL}))?")
"""Groups: sign, whole number before a fraction, number or numerator, denominator."""
PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def read_number(text: str) -> Fraction | None:
    """Return the exact value of the one number that `text` states; None if it states none or several."""
    bare = bare_number(text)
    return None if bare is None else _value(bare)


def bare_number(text: str) -> str | None:
    """Return the one number that `text` states, without the text around it: `-1000`, `0.50`, `1/2`, `5 1/2`.

    Thousands separators and a plus sign are removed; a minus is a hyphen. None as in `read_number`.
    """
    if len(text) > LONGEST:
        return None
    # A fast path for nearly all answers of a data set.
    if PLAIN.fullmatch(text):
        return text
    text = _unwrapped(" ".join(text.translate(MINUS).split()))
    if named := NAMED.match(text):
        text = _unwrapped(text[named.end() :])
    text = CURRENCY.sub("", PERCENT.sub("", _without_unit(text)), count=1)
    found = BARE.fullmatch(_joined(text))
    if found is None:
        return None
    sign, whole, top, bottom = (re.sub("[, ]", "", group or "") for group in found.groups())
    number = f"{whole} {top}/{bottom}".strip() if bottom else top
    bare = sign.removeprefix("+") + number
    return bare if _value(bare) is not None else None


def gold_number(text: str) -> str:
    """Return the bare number of a data set's answer.

    Raises:
        ValueError: the answer states no number or several.
    """
    number = bare_number(text)
    if number is None:
        raise ValueError(f"the answer {shown(text.strip())} is not a number")
    return number


def _unwrapped(text: str) -> str:
    """Return the text without enclosing brackets, quotes and marks, and without punctuation at its ends."""
    text = text.lstrip(" ,;:").rstrip(" .,;:!?")
    for opening, closing in WRAPPERS:
        inside = text[len(opening) : -len(closing)]
        if text == opening + inside + closing:
            return _unwrapped(inside)
    return text


def _without_unit(text: str) -> str:
    """Return the text without the unit at its end; unchanged if a word is no unit or there are too many."""
    words = text.split(" ")
    unit = list(takewhile(str.isalpha, reversed(words)))
    if len(unit) > UNIT_WORDS or any(word.casefold() in NOT_UNITS for word in unit):
        return text
    return " ".join(words[: len(words) - len(unit)])


def _joined(text: str) -> str:
    """Return the text without the spaces that a word tokenizer leaves around signs, as in `1 , 000`."""
    text = re.sub(r"(?<=[0-9]) ([.,/]) (?=[0-9])", r"\1", text.strip())
    return re.sub(r"^([+-]?) *(\.?) *(?=[0-9])", r"\1\2", text)


def _value(bare: str) -> Fraction | None:
    """Return the value of a bare number; None if it divides by zero or is an improper mixed number."""
    *whole, last = bare.removeprefix("-").split(" ")
    top, _, bottom = last.partition("/")
    if bottom and Fraction(bottom) == 0:
        return None
    value = Fraction(top) / Fraction(bottom or 1)
    if whole and value >= 1:
        return None
    return sum(map(Fraction, whole), value) * (-1 if bare.startswith("-") else 1)
