"""How a table tells that weights were quantized."""

from typing import Any

SMALLER = 0.9
"""Bytes a parameter, as a part of the largest ones', below which weights were quantized. Without that they
differ by what a file says beside its weights, a few hundredths in tiny models."""


def bytes_a_parameter(rows: Any) -> Any:
    """Of one row of a table or of each."""
    return rows["checkpoint_bytes"] / rows["parameters"]
