"""Mistral: like Llama, with a sliding window in all layers or in none."""

from collections.abc import Mapping
from typing import Any

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    return config.get("sliding_window", 4096)


MISTRAL = Family("mistral", LAYOUT, defaults={"num_key_value_heads": 8}, window=_window)
