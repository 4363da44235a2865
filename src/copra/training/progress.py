"""What a training counts: the work that is done, and the means of its loss terms."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from copra.data.sequences import Work
from copra.utils import processes

if TYPE_CHECKING:
    from copra.methods.losses import LossTerms


@dataclass
class Progress:
    """What a training has done so far; saved with its state.

    `work` sums, for each reader, tokens, context and supervised positions (`copra.data.sequences.Work`).
    """

    work: dict[str, list[int]] = field(default_factory=lambda: {"model": [0, 0, 0]})
    best_step: int | None = None
    best_value: float | None = None
    best_sha256: str | None = None
    """Of the file with the weights that were chosen so far."""

    def count(self, works: Iterable[Work]) -> None:
        for one in works:
            sums = self.work.setdefault(one.reader, [0, 0, 0])
            for index, value in enumerate((one.tokens, one.context, one.supervised)):
                sums[index] += value


class Means:
    """The means of loss terms over several forward passes."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Any]] = {}

    def add(self, terms: "LossTerms") -> None:
        """Add the terms of one pass, each a sum and a count."""
        for name, (value, count) in terms.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0], entry[1] = entry[0] + value.detach(), entry[1] + count

    def on_device(self, name: str) -> Any:
        """The mean of a term in this process, where it is computed, or None: nothing waits for it."""
        if name not in self.sums:
            return None
        total, count = self.sums[name]
        return total / max(count, 1)

    def values(self) -> dict[str, float]:
        """The mean of every term over all processes, which all must call this; on a GPU this waits for the
        passes to finish."""
        sums: dict[str, tuple[float, int]] = {}
        own = {name: (float(total), int(count)) for name, (total, count) in self.sums.items()}
        for each in processes.all_gather(own):
            for name, (total, count) in each.items():
                known = sums.get(name, (0.0, 0))
                sums[name] = known[0] + total, known[1] + count
        return {name: total / max(count, 1) for name, (total, count) in sums.items()}
