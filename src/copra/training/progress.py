"""Counters of a training: the work done, the best step, and the means of the loss terms."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from copra.data.sequences import Work
from copra.utils import processes

if TYPE_CHECKING:
    from copra.methods.losses import LossValues


@dataclass
class Progress:
    """The work and the best step of a training so far; saved with its state.

    `work` sums, for each reader, tokens, context and supervised positions (`copra.data.sequences.Work`).
    """

    work: dict[str, list[int]] = field(default_factory=lambda: {"model": [0, 0, 0]})
    best_step: int | None = None
    best_value: float | None = None
    best_sha256: str | None = None
    """The sha256 of the file with the best weights so far."""
    lowest_loss: float | None = None
    """The validation loss of the last improvement, for early stopping."""
    not_improved: int = 0
    """The number of validations since that improvement."""

    def count_validation(self, loss: float, min_delta: float) -> None:
        """Count a validation, from 0 if its loss is more than `min_delta` below the lowest."""
        if self.lowest_loss is None or loss < self.lowest_loss - min_delta:
            self.lowest_loss, self.not_improved = loss, 0
        else:
            self.not_improved += 1

    def count(self, works: Iterable[Work]) -> None:
        for one in works:
            sums = self.work.setdefault(one.reader, [0, 0, 0])
            for index, value in enumerate((one.tokens, one.context, one.supervised)):
                sums[index] += value


class Means:
    """Accumulates the means of loss terms over several forward passes."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Any]] = {}

    def add(self, terms: "LossValues") -> None:
        """Add the terms of one pass, each a sum and a count."""
        for name, (value, count) in terms.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0], entry[1] = entry[0] + value.detach(), entry[1] + count

    def on_device(self, name: str) -> Any:
        """Return the mean of a term in this process as a device tensor, without synchronizing, or None."""
        if name not in self.sums:
            return None
        total, count = self.sums[name]
        return total / max(count, 1)

    def values(self) -> dict[str, float]:
        """Return the mean of every term over all processes. All processes must call it.

        On a GPU it blocks until the passes have finished.
        """
        sums: dict[str, tuple[float, int]] = {}
        own = {name: (float(total), int(count)) for name, (total, count) in self.sums.items()}
        for each in processes.all_gather(own):
            for name, (total, count) in each.items():
                known = sums.get(name, (0.0, 0))
                sums[name] = known[0] + total, known[1] + count
        return {name: total / max(count, 1) for name, (total, count) in sums.items()}
