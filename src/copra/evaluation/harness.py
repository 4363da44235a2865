"""The exact scoring rules of lm-evaluation-harness on GSM8K, task `gsm8k_cot` version 3.0.

One of the task's two filters extracts an answer. It is right if it equals the gold answer as text, after
commas, dollar signs, everything up to `#### `, and a final full stop are removed from both. So `24.0`, `1/2`
or `18%` never equal `24`, `0.5` or `18` here, as they do under copra's own rules.
"""

import re
from typing import Literal

Filter = Literal["strict-match", "flexible-extract"]

PATTERNS: dict[Filter, tuple[re.Pattern[str], int]] = {
    "strict-match": (re.compile(r"The answer is (\-?[0-9\.\,]+)."), 0),
    "flexible-extract": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
"""The pattern of each filter, and the index of the match that counts."""
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
"""Patterns of text that is removed before comparison, in this order (`regexes_to_ignore`)."""


def extract(text: str, name: Filter) -> str | None:
    """Return the answer that a filter extracts from a generated text, or None (`[invalid]` there)."""
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
