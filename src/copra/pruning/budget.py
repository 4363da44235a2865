"""What a prune step removes and how much of it (no torch)."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from copra.errors import CopraError
from copra.settings import Settings

LAYER_METRICS = ("cosine", "angular", "deepest", "random")
KV_GROUP_METRICS = ("gradient", "activation", "random")


class Budget(Settings):
    """How much is removed: exactly one of `count`, `fraction` and `flops`."""

    count: int | None = Field(None, ge=1)
    """So many units, exactly."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """This part of all units of the model before the step, met to the nearest legal number."""
    flops: float | None = Field(None, gt=0, lt=1)
    """The FLOPs of one answer afterwards, as a part of the dense model's, met to the nearest legal number."""

    @model_validator(mode="after")
    def _one_of_three(self) -> "Budget":
        given = [name for name in ("count", "fraction", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of 'count', 'fraction' and 'flops', not {' and '.join(given) or 'none'}"
            )
        return self

    def choose(self, legal: Sequence[int], total: int, ratio: Callable[[int], float], units: str) -> int:
        """The number of units to remove.

        `legal` holds the numbers that may be removed, rising from 0, of `total` units that are called
        `units`; `ratio` gives the FLOPs after such a removal as a part of the dense model's. Of two numbers
        that are equally near the smaller one is taken.

        Raises:
            CopraError: the count is not legal, or the nearest legal number is further from the target
                than half its distance from the next one; the message says what is possible.
        """
        if len(legal) == 1:
            raise CopraError(
                f"budget: none of the {total} {units} may be removed. Protect fewer layers, or leave this "
                "step out."
            )
        if self.count is not None:
            return self._exact_count(legal, total, units)
        if self.fraction is not None:
            # By way of its decimal text, so that 0.07 of 50 is the tie 3.5 and not a bit more.
            return self._nearest_number(Fraction(str(self.fraction)) * total, legal, total, units)
        return self._nearest_ratio(legal, total, ratio, units)

    def _exact_count(self, legal: Sequence[int], total: int, units: str) -> int:
        if self.count in legal:
            return self.count
        below = max(number for number in legal if number < self.count)
        above = min((number for number in legal if number > self.count), default=None)
        near = " and ".join(str(number) for number in (below, above) if number)
        raise CopraError(
            f"budget.count: {self.count} of the {total} {units} cannot be removed; the nearest legal counts "
            f"are {near}, the largest is {legal[-1]}."
        )

    def _nearest_number(self, target: Fraction, legal: Sequence[int], total: int, units: str) -> int:
        largest, before = legal[-1], legal[-2]
        if target - largest > Fraction(largest - before, 2):
            raise CopraError(
                f"budget.fraction: {self.fraction} of {total} {units} is more than can be removed. At most "
                f"{largest} can: give a fraction up to {largest / total:.3f}."
            )
        return min(legal, key=lambda number: (abs(target - number), number))

    def _nearest_ratio(
        self, legal: Sequence[int], total: int, ratio: Callable[[int], float], units: str
    ) -> int:
        ratios = {number: ratio(number) for number in legal}
        now, least, before = ratios[0], ratios[legal[-1]], ratios[legal[-2]]
        if self.flops > now:
            raise CopraError(
                f"budget.flops: the model costs {now:.4f} of the dense model's FLOPs before this step, which "
                f"is less than {self.flops}. Give a smaller target."
            )
        if least - self.flops > (before - least) / 2:
            raise CopraError(
                f"budget.flops: {self.flops} of the dense model's FLOPs cannot be met by removing {units}: "
                f"with {legal[-1]} of {total} removed {least:.4f} are left. Give a larger target, or prune "
                "something else as well."
            )
        return min(legal, key=lambda number: (abs(ratios[number] - self.flops), number))


class Prune(Settings):
    """A step that removes whole decoder layers, or whole KV groups of attention heads."""

    kind: Literal["prune"]
    """Which step this is."""
    unit: Literal["layers", "kv_groups"]
    """Decoder layers, or KV groups: a key/value head with all query heads that read it."""
    metric: Literal["cosine", "angular", "deepest", "random", "gradient", "activation"]
    """Which scores decide. Layers: cosine, angular, deepest or random. KV groups: gradient, activation or
    random."""
    budget: Budget
    """How much is removed."""
    scope: Literal["uniform", "global"] = "uniform"
    """KV groups: the same number from every layer, or the lowest scores wherever they are, with at least
    one group left in each layer."""
    protect: list[int] = Field(default_factory=list)
    """Layers, counted from 0 in the model as this step finds it, that are never touched."""

    @property
    def needs_scores(self) -> bool:
        """Whether a calibration set has to be scored; the other metrics look at no data."""
        return self.metric not in ("deepest", "random")

    @model_validator(mode="after")
    def _legal_combination(self) -> "Prune":
        metrics = LAYER_METRICS if self.unit == "layers" else KV_GROUP_METRICS
        if self.metric not in metrics:
            raise ValueError(
                f"metric: {self.metric!r} does not score {self.unit}; take one of {', '.join(metrics)}"
            )
        if self.unit == "layers" and self.scope == "global":
            raise ValueError("scope: 'global' is for KV groups; layers are always compared with each other")
        if any(layer < 0 for layer in self.protect):
            raise ValueError(f"protect: layers are counted from 0, so {self.protect} cannot be")
        return self
