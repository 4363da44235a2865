"""Detecting quantized weights from the columns of a table."""

from typing import Any

SMALLER = 0.9
"""Bytes per parameter, relative to the largest, below which weights count as quantized. Otherwise they differ
only by the headers of the files, a few hundredths in tiny models."""


def bytes_a_parameter(rows: Any) -> Any:
    """Return the bytes per parameter of one row of a table or of each row."""
    return rows["checkpoint_bytes"] / rows["parameters"]
