"""What a prune step removes and how much of it."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from copra.schema.metrics import COMPARABLE_ACROSS_UNITS, Metric, NORMALIzED, metrics_of, scoring_of
from copra.schema.scoring import Objective
from copra.schema.settings import Settings, one_or_list
from copra.schema.units import UnitKind
from copra.utils.errors import CopraError
from copra.utils.problems import shown

MISS = 0.05
"""A cut that removes so much more or less than was asked, as a part of what was asked, is warned of."""

NOT_FOR_LAYERS = "normalize: it compares units within a layer, so it is not for layers themselves"


class Budget(Settings):
    """How much is removed: exactly one of `count`, `fraction`, `parameters` and `flops`."""

    count: int | None = Field(None, ge=1)
    """So many units, exactly."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """This part of all units of the model before the step, met to the nearest legal number."""
    parameters: float | None = Field(None, gt=0, lt=1)
    """The weights of all layers' matrices afterwards, as a part of the dense model's, met to the nearest
    legal number. Embeddings do not count: no pruning touches them."""
    flops: float | None = Field(None, gt=0, lt=1)
    """The FLOPs of one answer afterwards, as a part of the dense model's, met to the nearest legal number."""

    @model_validator(mode="after")
    def _one_of_three(self) -> "Budget":
        given = [
            name for name in ("count", "fraction", "parameters", "flops") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of 'count', 'fraction', 'parameters' and 'flops', not "
                f"{' and '.join(given) or 'none'}"
            )
        return self

    def choose(self, legal: Sequence[int], total: int, share: Callable[[str, int], float], units: str) -> int:
        """The number of units to remove.

        `legal` holds the numbers that may be removed, rising from 0, of `total` units that are called
        `units`; `share` gives the "flops" or "parameters" after such a removal as a part of the dense
        model's. Of two numbers that are equally near the smaller one is taken.

        Raises:
            CopraError: the count is not legal, the nearest legal number is 0, or it is the largest one and
                further from the target than half its distance from the one before; the message says what is
                possible.
        """
        if len(legal) == 1:
            raise CopraError(
                f"budget: none of the {total} {units} may be removed. Protect fewer layers, take a smaller "
                "multiple_of for neurons, or leave this step out."
            )
        if self.count is not None:
            return self._exact_count(legal, total, units)
        if self.fraction is not None:
            # By way of its decimal text, so that 0.07 of 50 is the tie 3.5 and not a bit more.
            return self._nearest_number(Fraction(str(self.fraction)) * total, legal, total, units)
        measure, target = self._target
        return self._nearest_share(measure, target, legal, {n: share(measure, n) for n in legal}, units)

    def missed(self, number: int, total: int, share: Callable[[str, int], float]) -> float:
        """How much more than asked goes with so many units, as a part of what was asked: -0.25 where three
        quarters of it go. Of FLOPs and parameters what was asked is the way from before the step to the
        target. The arguments are those of `choose`."""
        if self.count is not None:
            return number / self.count - 1
        if self.fraction is not None:
            return number / (self.fraction * total) - 1
        measure, target = self._target
        now = share(measure, 0)
        return (now - share(measure, number)) / (now - target) - 1

    def warning(self, number: int, total: int, share: Callable[[str, int], float], units: str) -> str | None:
        """A sentence about a cut that misses its budget by more than `MISS`; None of one that does not."""
        missed = self.missed(number, total, share)
        if abs(missed) <= MISS:
            return None
        off = f"{abs(missed):.0%} {'more' if missed > 0 else 'less'} than asked"
        nearest = f"the nearest legal cut removes {number}"
        if self.fraction is not None:
            return f"budget.fraction: {self.fraction} of {total} {units}: {nearest}, {off}"
        measure, target = self._target
        left = f"{share(measure, number):.4f}"
        return f"budget.{measure}: {target} {_of_dense(measure)}: {nearest} {units} and leaves {left}, {off}"

    def check_reach(
        self, now: float, least: float, last_step: float, units: str, most: int | str = "all that can go"
    ) -> None:
        """Check that a target of FLOPs or parameters lies between what a model has and what removals leave.

        `now` and `least` are the parts of the dense model's before the step and with `most` units removed,
        `last_step` is what the last removal takes.

        Raises:
            CopraError: the target is above `now`, or further below `least` than half of the last step.
        """
        measure, target = self._target
        of_dense = _of_dense(measure)
        if target > now:
            raise CopraError(
                f"budget.{measure}: the model has {now:.4f} {of_dense} before this step, which is less than "
                f"{target}. Give a smaller target."
            )
        if least - target > last_step / 2:
            raise CopraError(
                f"budget.{measure}: {target} {of_dense} cannot be met by removing {units}: with {most} "
                f"removed {least:.4f} are left. Give a target of {least:.4f} or more, or prune something "
                "else as well."
            )

    @property
    def _target(self) -> tuple[str, float]:
        """The measure of a budget that counts no units, and the part of it that is to be left."""
        return ("flops", self.flops) if self.flops is not None else ("parameters", self.parameters)

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
        nearest = min(legal, key=lambda number: (abs(target - number), number))
        if not nearest:
            enough = math.ceil(1e4 * legal[1] / total) / 1e4
            raise CopraError(
                f"budget.fraction: {self.fraction} of {total} {units} is nearest to removing nothing. The "
                f"smallest legal cut removes {legal[1]}: give {enough:g}, or leave this step out."
            )
        return nearest

    def _nearest_share(
        self, measure: str, target: float, legal: Sequence[int], shares: dict[int, float], units: str
    ) -> int:
        least = shares[legal[-1]]
        self.check_reach(shares[0], least, shares[legal[-2]] - least, units, legal[-1])
        of_dense = _of_dense(measure)
        nearest = min(legal, key=lambda number: (abs(shares[number] - target), number))
        if not nearest:
            raise CopraError(
                f"budget.{measure}: {target} {of_dense} is nearest to removing nothing. The smallest legal "
                f"cut removes {legal[1]} {units} and leaves {shares[legal[1]]:.4f}: give that, or leave this "
                "step out."
            )
        return nearest


def _of_dense(measure: str) -> str:
    return f"of the dense model's {'FLOPs' if measure == 'flops' else 'matrix weights'}"


class Selection(Settings):
    """Which units a choice by scores may take, and how they are compared."""

    scope: Literal["uniform", "global"] = "uniform"
    """Heads, groups and neurons: the same number from every layer, or the lowest scores wherever they are,
    with something left in each layer. Layers, and several kinds together, are always compared globally."""
    protect: list[NonNegativeInt] = Field(default_factory=list)
    """Layers, counted from 0 in the model as this step finds it, that are never touched."""
    multiple_of: int = Field(64, ge=1)
    """Neurons: the FFN widths that are left are multiples of this."""
    abs_over: Literal["token", "example", "batch"] = "example"
    """Metric gradient: where the absolute value is taken: each token, each example (as in arXiv 1905.10650),
    or once, after the sum over all calibration rows."""


class Prune(Selection):
    """A step that removes decoder layers, KV groups, query heads or FFN neurons, or several of these."""

    kind: Literal["prune"]
    """Which step this is."""
    unit: Annotated[
        Annotated[UnitKind, Tag("one")] | Annotated[list[UnitKind], Tag("list")], Discriminator(one_or_list)
    ]
    """Decoder layers; KV groups (a key/value head with all query heads that read it); query heads, the same
    number from every group of a layer; or FFN neurons. Of a list, the kinds compete on score per FLOP."""
    metric: Metric
    """Which scores decide; the README says which metric scores what."""
    budget: Budget
    """How much is removed."""
    normalize: bool | None = Field(None, validate_default=True)
    """Divide the scores of a kind of unit in each layer by their L2 norm (null: true for `activation` and
    `contribution` where layers compete, that is with scope global, and otherwise false)."""
    objective: Objective | None = None
    """What the scores are taken on (null: as in `importance`)."""

    @field_validator("normalize")
    @classmethod
    def _resolved(cls, value: bool | None, info: ValidationInfo) -> bool:
        """The value that null stands for, so that the canonical settings hold what is done."""
        if value is not None:
            return value
        return info.data.get("metric") in NORMALIzED and info.data.get("scope") == "global"

    @property
    def units(self) -> tuple[UnitKind, ...]:
        """The kinds of unit."""
        return (self.unit,) if isinstance(self.unit, str) else tuple(self.unit)

    @property
    def scoring(self) -> str | None:
        """The scoring run that the step needs; None for metrics that look at no data."""
        return scoring_of(self.units[0], self.metric)

    @property
    def scored_as(self) -> str:
        """What the metric is called in a table of scores."""
        plain = self.metric != "gradient" or self.abs_over == "example"
        return self.metric if plain else f"gradient_{self.abs_over}"

    @model_validator(mode="after")
    def _legal_combination(self) -> "Prune":
        if not self.units or len(set(self.units)) < len(self.units):
            raise ValueError(f"unit: {shown(list(self.units))} is empty or names a kind twice")
        for kind in self.units:
            if self.metric not in (known := metrics_of(kind)):
                raise ValueError(
                    f"metric: {self.metric!r} does not score {kind}; take one of {', '.join(known)}"
                )
        several = len(self.units) > 1
        if several and self.metric not in COMPARABLE_ACROSS_UNITS:
            raise ValueError(
                f"metric: {self.metric!r} gives {' and '.join(self.units)} no common scale; several kinds "
                f"compete by {', '.join(COMPARABLE_ACROSS_UNITS)}"
            )
        if several and (self.budget.count is not None or self.budget.fraction is not None):
            raise ValueError(
                "budget: units of several kinds cannot be counted together; give flops or parameters"
            )
        if self.normalize and "layers" in self.units:
            raise ValueError(NOT_FOR_LAYERS)
        return self
