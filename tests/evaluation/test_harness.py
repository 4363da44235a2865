"""Verdicts against those of lm-evaluation-harness, whose steps are written out here from its source."""

import re

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copra.evaluation import harness

# lm_eval/tasks/gsm8k/gsm8k-cot.yaml, version 3.0.
FILTERS = {
    "strict-match": {"regex_pattern": r"The answer is (\-?[0-9\.\,]+)."},
    "flexible-extract": {"regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1},
}
METRIC = {"regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"], "ignore_case": True}


def regex_filter(
    response: str, regex_pattern: str, group_select: int = 0, fallback: str = "[invalid]"
) -> str:
    """lm_eval/filters/extraction.py, RegexFilter.apply, of one response."""
    match = re.compile(regex_pattern).findall(response)
    if not match:
        return fallback
    match = match[group_select]
    if isinstance(match, tuple):
        filled = [group for group in match if group]
        match = filled[0] if filled else fallback
    return match.strip()


def exact_match(prediction: str, reference: str, regexes_to_ignore: list[str], ignore_case: bool) -> bool:
    """lm_eval/api/metrics.py, exact_match_hf_evaluate, of one pair."""
    predictions, references = numpy.asarray([prediction]), numpy.asarray([reference])
    for pattern in regexes_to_ignore:
        predictions = numpy.array([re.sub(pattern, "", text) for text in predictions])
        references = numpy.array([re.sub(pattern, "", text) for text in references])
    if ignore_case:
        predictions, references = numpy.char.lower(predictions), numpy.char.lower(references)
    return bool((predictions == references)[0])


def verdict(text: str, gold: str, name: str) -> bool:
    return exact_match(regex_filter(text, **FILTERS[name]), gold, **METRIC)


def ours(text: str, gold: str, name: str) -> bool:
    return harness.is_match(harness.extract(text, name), gold)


# The verdicts of "strict-match" and "flexible-extract" where the gold answer is 18 (or as said), by hand.
WORKED = {
    "9 * 2 = 18. The answer is 18.": (True, True),
    "The answer is 18": (False, True),
    "The answer is $18.": (False, True),
    "The answer is 18 dollars.": (True, True),
    "The answer is 18%.": (True, True),
    "The answer is 18.0.": (False, False),
    "The answer is 36/2.": (False, False),
    "The answer is 1/18.": (False, True),
    "The answer is 18. The answer is 19.": (True, False),
    "The answer is 19. The answer is 18.": (False, True),
    "the answer is 18.": (False, True),
    "The answer is 1,8.": (True, True),
    "The answer is -18.": (False, False),
    "The answer is 18, of course": (True, True),
    "The answer is 018.": (False, False),
    "#### 18": (False, True),
    "eighteen": (False, False),
    "": (False, False),
}


@pytest.mark.parametrize("text", WORKED)
def test_verdicts_by_hand(text):
    expected = dict(zip(("strict-match", "flexible-extract"), WORKED[text], strict=True))
    assert {name: ours(text, "18", name) for name in FILTERS} == expected
    assert {name: verdict(text, "18", name) for name in FILTERS} == expected


@pytest.mark.parametrize("name", FILTERS)
@given(
    st.lists(
        st.sampled_from(
            [
                "The answer is ",
                "the answer is ",
                " ",
                "\n",
                ".",
                ",",
                "-",
                "$",
                "7",
                "10",
                "x",
                "/",
                "%",
                "#### ",
            ]
        )
    ).map("".join),
    st.sampled_from(["7", "10", "-7", "1000", "1,000", "7.5", "710", "$7", ""]),
)
def test_every_verdict_is_the_harness_own(name, text, gold):
    found = regex_filter(text, **FILTERS[name])
    assert (harness.extract(text, name) or "[invalid]") == found
    assert ours(text, gold, name) == verdict(text, gold, name)


@pytest.mark.parametrize("name", FILTERS)
@given(st.text(), st.text(alphabet="0123456789.,$-# X", max_size=6))
def test_any_text_gets_the_same_verdict(name, text, gold):
    assert ours(text, gold, name) == verdict(text, gold, name)
