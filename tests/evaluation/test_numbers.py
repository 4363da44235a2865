"""Every line of the table in `copra.tasks.numbers`, and what a table cannot hold."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copra.tasks import numbers
from copra.tasks.answers import extract_answer, same_answer
from copra.tasks.numbers import bare_number, read_number

READ = {
    "18": 18,
    "+18": 18,
    "18.": 18,
    "18,": 18,
    "$1,000.,": 1000,
    "18!": 18,
    ",18": 18,
    "$$18": 18,
    "18.0": 18,
    ".5": Fraction(1, 2),
    "-18": -18,
    "−18": -18,
    "–18": -18,
    "1,000": 1000,
    "1,234,567.5": Fraction(2469135, 2),
    "1 000": 1000,
    "1.000": 1,
    "1/2": Fraction(1, 2),
    "3.5/7": Fraction(1, 2),
    "5 1/2": Fraction(11, 2),
    "-5 1/2": Fraction(-11, 2),
    "5 000/2": 2500,
    "$18": 18,
    "-$18": -18,
    "$-18": -18,
    "18 €": 18,
    "£ 18": 18,
    "¥18": 18,
    "₹18": 18,
    "50%": 50,
    "50 percent": 50,
    "18 dollars": 18,
    "18 dollars.": 18,
    "18 square feet": 18,
    "$18 per week": 18,
    "**18**": 18,
    "*18*": 18,
    "__18__": 18,
    "`18`": 18,
    '"18"': 18,
    r"\boxed{18}": 18,
    r"\(18\)": 18,
    "$18$": 18,
    r"\$18": 18,
    r"18\%": 18,
    "(18)": 18,
    "[18]": 18,
    "x = 18": 18,
    "x=18": 18,
    "Total cost = $18": 18,
    # One in another.
    r"**x = \boxed{\$1,000}**.": 1000,
    # What a tokenizer of words makes of signs.
    "- 3": -3,
    "- . 5": Fraction(-1, 2),
    "1 , 000 . 5": Fraction(2001, 2),
    "5 1 / 2": Fraction(11, 2),
    "- $ 18": -18,
}
NOT_READ = [
    "1,00",
    "1,0000",
    "1,00,000",
    "1.000,50",
    "1.000.000",
    "1/0",
    "1 , 00",
    "5 1/0",
    "5 3/2",
    "5 1",
    "1/2/3",
    "18 thousand",
    "18 k",
    "2 dozen",
    "18 and a half",
    "18 or so",
    "18 of the very many apples",
    "18km",
    "1e3",
    "0x12",
    "10:30",
    "48/2 = 24",
    "x = y = 18",
    "18 or 19",
    "18, 19",
    "(18) (19)",
    "the price is 18",
    "--3",
    "dollars",
    "٣",
    "４",
    "2²",
    "½",
    "",
    ".",
    "-",
    "$",
    "()",
    "7" * (numbers.LONGEST + 1),
]


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read(text):
    assert read_number(text) == READ[text]


@pytest.mark.parametrize("text", NOT_READ, ids=lambda text: text[:30])
def test_no_number_is_read(text):
    assert read_number(text) is None


def test_every_form_in_the_docstring_is_tested():
    columns = [line.split(" | ")[0] for line in numbers.__doc__.splitlines() if line.startswith("| ")]
    shown = {form for column in columns for form in re.findall("`([^`]+)`", column)}
    assert len(shown) > 40
    assert shown <= {*READ, *NOT_READ}


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("$1,000.50", "1000.50"),
        ("+ 4", "4"),
        ("−1 000", "-1000"),
        ("0.50", "0.50"),
        (".5", ".5"),
        ("5 1 / 2", "5 1/2"),
        ("007", "007"),
        ("1/0", None),
    ],
)
def test_the_bare_number_keeps_its_form(text, bare):
    assert bare_number(text) == bare


@given(st.fractions(max_denominator=1000), st.sampled_from(["", "$", "€"]), st.sampled_from(["", " apples"]))
def test_any_fraction_is_read_as_python_writes_it(value, sign, unit):
    assert read_number(f"{sign}{value}{unit}") == value


@given(
    st.integers(), st.integers(0, 99), st.sampled_from(["{}", "**{}**", "({})", r"\boxed{{{}}}", "x = {}"])
)
def test_any_decimal_is_read_with_thousands_separators(whole, cents, form):
    sign, digits = ("-" if whole < 0 else ""), f"{abs(whole):,}.{cents:02d}"
    expected = Fraction(f"{sign}{abs(whole)}.{cents:02d}")
    assert read_number(form.format(sign + digits)) == expected


@given(st.text(alphabet="0123456789,./-+ $€%()*=x\\boxed{}`\"' .") | st.text())
def test_whatever_is_written_a_bare_number_is_its_own_bare_form(text):
    bare = bare_number(text)
    assert (bare is None) == (read_number(text) is None)
    if bare is not None:
        assert bare_number(bare) == bare
        assert read_number(bare) == read_number(text)


def test_a_trained_models_answer_still_needs_its_marker_and_one_number():
    """Reading more forms must not make a guess right: no marker is no answer, two numbers are none."""
    for text in ("18", "The answer is 18", "18 dollars", r"\boxed{18}", "## 18"):
        assert not same_answer(extract_answer(text), "18", "number")
    for text in ("### 18 19", "### 18 or 19", "### 17 + 1 = 18", "### 18, 19, 20", "### 18 (or 19)"):
        assert not same_answer(extract_answer(text), "18", "number")
    for text in ("### 18", "### $18.", "### 18 dollars", "### **18**"):
        assert same_answer(extract_answer(text), "18", "number")
