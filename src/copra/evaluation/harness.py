"""The verdicts of lm-evaluation-harness on GSM8K, task `gsm8k_cot` version 3.0, to the letter.

An answer is found by one of the task's two filters, and is right if it equals the gold answer as text, once
both are stripped of commas, dollar signs, everything up to `#### `, and a full stop at the end. So `24.0`,
`1/2` or `18%` never equal `24`, `0.5` or `18` here, as they do under copra's own rules.
"""

import re
from typing import Literal

Filter = Literal["strict-match", "flexible-extract"]

PATTERNS: dict[Filter, tuple[re.Pattern[str], int]] = {
    "strict-match": (re.compile(r"The answer is (\-?[0-9\.\,]+)."), 0),
    "flexible-extract": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
"""The pattern of each filter, and which of its matches counts."""
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
"""Patterns of the text to remove before comparison, in this order (`regexes_to_ignore`)."""


def extract(text: str, name: Filter) -> str | None:
    """The answer that a filter finds in a generated text, or None where it finds none (`[invalid]` there)."""
    pattern, which = PATTERNS[name]
    matches = list(pattern.finditer(text))
    return next(filter(None, matches[which].groups())).strip() if matches else None


def is_match(extracted: str | None, gold: str) -> bool:
    """True if an extracted answer is exactly the gold answer (metric `exact_match`, `ignore_case`)."""
    return extracted is not None and _normalized(extracted) == _normalized(gold)


def _normalized(text: str) -> str:
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()
