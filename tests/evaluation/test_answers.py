import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copra.tasks.answers import extract_answer, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2=24\n### 24", "24"),
        ("48/2=24\n#### 24\nmore text 7", "24"),
        ("### 1\nno, wait\n### 2\n", "2"),
        ("###5", "5"),
        ("### $1,000.", "$1,000."),
        ("###  a  b \r\nc", "a  b"),
        ("the answer is 24", None),
        ("## 24", None),
        ("### 24\n###", None),
        ("", None),
    ],
)
def test_a_trained_models_answer_follows_the_last_marker(text, answer):
    assert extract_answer(text) == answer


def harness(text: str, pattern: str, which: int) -> str | None:
    """What a filter of lm-evaluation-harness finds: one of all matches, and of its groups the filled one."""
    found = re.findall(pattern, text)
    if not found:
        return None
    groups = found[which] if isinstance(found[which], tuple) else (found[which],)
    return next(group for group in groups if group).strip()


# The two filters of its task gsm8k_cot: pattern, and which match.
FILTERS = {
    "strict": (r"The answer is (\-?[0-9\.\,]+).", 0),
    "flexible": (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
}
GENERATED = [
    "There are 3 + 4 = 7 apples. The answer is 7.",
    " 3 + 4 = 7. The answer is 7.\n\n",
    "The answer is 1,000. The answer is 2.",
    "The answer is 24 dollars.",
    "The answer is 18%.",
    "The answer is -3.",
    "The answer is -3, as 4 - 7 is.",
    "The answer is $18.",
    "The answer is $1,000.50. I mean 12",
    "the answer is 5. The answer is: 6. The answer is 7!",
    "The answer is 24",
    "The answer is 5",
    "The answer is 10.5.",
    "The answer is unknown. The answer is 3.",
    "The answer is not 3 apples but 4.",
    "The answer is .",
    "The answer is ... 3",
    "The answer is 1\n2.",
    "The answer is\n9.",
    "The  answer is 9.",
    "The answer is 9 .",
    "-",
    "$",
    ",",
    "..",
    "It is 3-4, or -5-6",
    "9" * 500,
    "٣ and ４",
    "",
]


@pytest.mark.parametrize("prompted", FILTERS)
@pytest.mark.parametrize("text", GENERATED)
def test_a_prompted_models_number_is_the_one_that_lm_evaluation_harness_finds(text, prompted):
    assert extract_answer(text, prompted, "number") == harness(text, *FILTERS[prompted])


@pytest.mark.parametrize("prompted", FILTERS)
@given(
    st.lists(
        st.sampled_from(
            ["The answer is ", "The answer is", " ", "\n", ".", ",", "-", "$", "7", "10", "x", "#"]
        )
    ).map("".join)
)
def test_whatever_is_generated_both_find_the_same_number(prompted, text):
    assert extract_answer(text, prompted, "number") == harness(text, *FILTERS[prompted])


@pytest.mark.parametrize(
    ("prompted", "text", "answer"),
    [
        ("flexible", "So she has 3 + 4 = 7 apples. The answer is 7.", "7."),
        ("flexible", "It costs $1,000.50 in all", "$1,000.50"),
        ("flexible", "no number", None),
        ("strict", "So 1 + 2 = 3. The answer is 3. The answer is 4.", "3."),
        ("strict", "The answer is 24 dollars, or 25.", "24"),
        ("strict", "It is 24", None),
    ],
)
def test_a_prompted_models_answer_is_the_last_number_or_the_one_stated_first(prompted, text, answer):
    assert extract_answer(text, prompted) == answer


def test_a_fraction_is_one_number():
    """Where the harness finds its denominator."""
    assert extract_answer("Half: 1/2.", "flexible") == "1/2."
    assert extract_answer("In 3 days -5 1/2 miles.", "flexible") == "-5 1/2"
    assert extract_answer("On day 3 1/2 and 4 1.", "flexible") == "1."
    assert harness("Half: 1/2.", *FILTERS["flexible"]) == "2."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tom is a lempus. So the answer follows. The answer is Tom is a lempus.", "Tom is a lempus"),
        ("The answer is Tom is a lempus . The answer is Tom is a rempus .", "Tom is a lempus"),
        ("The answer is a lempus\nThe answer is a rempus", "a lempus"),
        ("The answer is 5 5 6 0.\n\n", "5 5 6 0"),
        ("The answer is 5 5 6 0", "5 5 6 0"),
        ("The answer is 1.5 metres. Yes.", "1.5 metres"),
        ("The answer is \nnothing", None),
        ("no answer", None),
    ],
)
def test_a_stated_text_ends_with_its_sentence_or_line(text, answer):
    assert extract_answer(text, "strict", "text") == answer


@pytest.mark.parametrize(
    ("extracted", "gold"),
    [
        ("-3", "-3"),
        ("1,000", "1000"),
        ("1000", "1,000"),
        ("0.50", "0.5"),
        ("0.50", "1/2"),
        ("1/2", "2/4"),
        ("-1/2", "-0.5"),
        ("$18.", "18"),
        ("-$18", "-18"),
        ("50%", "50"),
        (" 7 ", "7"),
        ("1 000 000", "1,000,000"),
        ("+4", "4"),
        (".5", "0.5"),
        ("18.00", "18"),
        ("0.1", "1/10"),
        ("123456789012345678901", "123456789012345678901"),
        ("5 1/2", "5.5"),
        ("18 dollars", "$18"),
        ("**18**", "18"),
    ],
)
def test_equal_numbers(extracted, gold):
    assert same_answer(extracted, gold, "number")


@pytest.mark.parametrize(
    ("extracted", "gold"),
    [
        ("3", "-3"),
        ("1.000", "1000"),
        ("0.33", "1/3"),
        ("123456789012345678901", "123456789012345678902"),  # equal as floats
        ("5 1/2", "51/2"),
        ("1,00", "100"),
        (None, "18"),
        ("", "0"),
        ("1/0", "1"),
        ("0/0", "0"),
        ("--3", "3"),
        ("1/2/3", "1/6"),
        ("1e3", "1000"),
        ("nan", "nan"),
        ("٣", "3"),
    ],
)
def test_different_numbers_and_garbage(extracted, gold):
    assert not same_answer(extracted, gold, "number")


@pytest.mark.parametrize("text", ["9" * 100_000, "1e999999999", "1/" * 5000, "#" * 10000, "." * 9999, "\x00"])
def test_huge_garbage_is_wrong_and_raises_nothing(text):
    assert not same_answer(text, "18", "number")
    assert not same_answer("18", text, "number")
    assert not same_answer(text, "yes", "text")
    extract_answer(text)
    for prompted in ("strict", "flexible"):
        extract_answer(text, prompted)
        extract_answer(f"The answer is {text}", prompted, "text")


@pytest.mark.slow
@given(st.text(), st.text())
def test_no_text_raises(first, second):
    for kind in ("number", "text"):
        assert same_answer(first, second, kind) == same_answer(second, first, kind)


def test_texts_are_compared_without_case_white_space_and_full_stop():
    assert same_answer("Tom is a  Lempus.", "tom is a lempus", "text")
    assert same_answer("STRASSE", "straße", "text")
    assert not same_answer("tom is a rempus", "tom is a lempus", "text")
    assert not same_answer(None, "", "text")
