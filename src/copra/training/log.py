"""Check the log of a training, one JSON line per step, before it is used."""

import contextlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from copra.utils.errors import CopraError


def check_lines(lines: Sequence[str], steps: int, file: Path) -> None:
    """Check that a log has exactly the lines of steps 1 to `steps`, each once and in order.

    Raises:
        CopraError: a line is missing or of another step; names `file` and the first such line.
    """
    for number, (line, step) in enumerate(zip_longest(lines, range(1, steps + 1)), start=1):
        if line is None or step is None or _step_of(line) != step:
            raise CopraError(
                f"{file}: line {number} of {len(lines)} is not that of step {number} of {steps}, so another "
                f"process wrote here too, or the disk lost some. Delete {file.parent} and run again: the "
                "stage starts anew."
            )


def _step_of(line: str) -> int | None:
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(line).get("step")
    return None
