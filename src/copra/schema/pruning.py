"""Settings of a prune step: the units that it removes, and how many."""

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

from copra.schema.metrics import Metric, comparable_across_units, is_normalized, metrics_of, scoring_of
from copra.schema.scoring import Objective
from copra.schema.settings import Settings, one_or_list
from copra.schema.units import UnitKind
from copra.utils.errors import CopraError
from copra.utils.problems import shown

MISS = 0.05
"""Relative deviation from the requested removal above which a warning is given."""

PROOF_ROWS = 8
"""Number of training rows on which a pruned model is compared with the masked one."""

NOT_FOR_LAYERS = "normalize: it compares units within a layer, so it is not for layers themselves"


class Budget(Settings):
    """Amount to remove: exactly one of `count`, `fraction`, `parameters` and `flops`."""

    count: int | None = Field(None, ge=1)
    """Exact number of units to remove."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Fraction of the units before this step to remove, rounded to the nearest legal number."""
    parameters: float | None = Field(None, gt=0, lt=1)
    """Target number of weights in all layers' matrices after this step, as a fraction of the dense model's;
    met by the nearest legal number of units. Embeddings do not count, as no pruning changes them."""
    flops: float | None = Field(None, gt=0, lt=1)
    """Target FLOPs per answer after this step, as a fraction of the dense model's; met by the nearest legal
    number of units."""

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
        """Return the number of units to remove.

        `legal` holds the numbers that may be removed, in ascending order from 0, out of `total` units with
        the plural name `units`. `share` returns the "flops" or "parameters" after a removal as a fraction of
        the dense model's. Of two numbers that are equally near, the smaller one is returned.

        Raises:
            CopraError: the count is not legal, the nearest legal number is 0, or the target is beyond the
                largest legal number by more than half the distance between the two largest. The message lists
                what is possible.
        """
        if len(legal) == 1:
            raise CopraError(
                f"budget: none of the {total} {units} may be removed. Protect fewer layers, take a smaller "
                "multiple_of for neurons, or leave this step out."
            )
        if self.count is not None:
            return self._exact_count(self.count, legal, total, units)
        if self.fraction is not None:
            # Converted from its decimal text, so that 0.07 of 50 is the tie 3.5 and not slightly more.
            return self._nearest_number(Fraction(str(self.fraction)) * total, legal, total, units)
        measure, target = self._target
        return self._nearest_share(measure, target, legal, {n: share(measure, n) for n in legal}, units)

    def missed(self, number: int, total: int, share: Callable[[str, int], float]) -> float:
        """Return the excess of a removal of `number` units, relative to the requested removal.

        -0.25 means that three quarters of the requested removal are met. For FLOPs and parameters, the
        requested removal is the difference between the value before the step and the target. For the other
        arguments see `choose`.
        """
        if self.count is not None:
            return number / self.count - 1
        if self.fraction is not None:
            return number / (self.fraction * total) - 1
        measure, target = self._target
        now = share(measure, 0)
        return (now - share(measure, number)) / (now - target) - 1

    def warning(self, number: int, total: int, share: Callable[[str, int], float], units: str) -> str | None:
        """Return a warning if removing `number` units misses the budget by more than `MISS`, else None."""
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
        """Check that a target of FLOPs or parameters can be reached.

        `now` and `least` are the fractions of the dense model's value before the step and with `most` units
        removed. `last_step` is the fraction that the last removal accounts for.

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
        """The measure ("flops" or "parameters") of a budget that counts no units, and its target fraction."""
        if self.flops is not None:
            return "flops", self.flops
        assert self.parameters is not None  # exactly one of the four is given
        return "parameters", self.parameters

    @staticmethod
    def _exact_count(count: int, legal: Sequence[int], total: int, units: str) -> int:
        if count in legal:
            return count
        below = max(number for number in legal if number < count)
        above = min((number for number in legal if number > count), default=None)
        near = " and ".join(str(number) for number in (below, above) if number)
        raise CopraError(
            f"budget.count: {count} of the {total} {units} cannot be removed; the nearest legal counts "
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
    """Settings for selecting units by their scores."""

    scope: Literal["uniform", "global"] = "uniform"
    """For heads, KV groups and neurons. uniform: remove the same number from every layer; global: remove the
    lowest scores of all layers, keeping at least one unit per layer. Layers, and several kinds together, are
    always compared globally."""
    protect: list[NonNegativeInt] = Field(default_factory=list)
    """Indices of layers that are never pruned, counted from 0 in the model before this step."""
    multiple_of: int = Field(64, ge=1)
    """For neurons: every FFN width after pruning is a multiple of this number."""
    abs_over: Literal["token", "example", "batch"] = "example"
    """For metric gradient: the sum inside the absolute value runs over one token, one example (as in arXiv
    1905.10650), or the batch of all calibration rows."""


class Prune(Selection):
    """A step that removes decoder layers, KV groups, query heads or FFN neurons, or several of these."""

    kind: Literal["prune"]
    """Kind of step."""
    unit: Annotated[
        Annotated[UnitKind, Tag("one")] | Annotated[list[UnitKind], Tag("list")], Discriminator(one_or_list)
    ]
    """Kind of unit to remove: decoder layers; KV groups (a key/value head with all query heads that read it);
    query heads, the same number from every group of a layer; or FFN neurons. The kinds of a list compete on
    score per FLOP."""
    metric: Metric
    """Metric by whose scores units are selected. The README lists the units that each metric scores."""
    budget: Budget
    """Amount to remove."""
    normalize: bool | None = Field(None, validate_default=True)
    """If true, the scores of each kind of unit in each layer are divided by their L2 norm (null: true for
    `activation` and `contribution` with scope global, where layers compete; otherwise false)."""
    objective: Objective | None = None
    """Objective that the scores are computed on (null: `importance.objective`)."""

    @field_validator("normalize")
    @classmethod
    def _resolved(cls, value: bool | None, info: ValidationInfo) -> bool:
        """Replace null by its value, so that the canonical settings hold the value in use."""
        if value is not None:
            return value
        metric = info.data.get("metric")
        return metric is not None and is_normalized(metric) and info.data.get("scope") == "global"

    @property
    def units(self) -> tuple[UnitKind, ...]:
        """The kinds of unit to remove."""
        return (self.unit,) if isinstance(self.unit, str) else tuple(self.unit)

    @property
    def scoring(self) -> str | None:
        """The scoring run that the step needs; None for metrics that read no data."""
        return scoring_of(self.units[0], self.metric)

    @property
    def scored_as(self) -> str:
        """The name of the metric in a score table."""
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
        if several and self.metric not in (comparable := comparable_across_units()):
            raise ValueError(
                f"metric: {self.metric!r} gives {' and '.join(self.units)} no common scale; several kinds "
                f"compete by {', '.join(comparable)}"
            )
        if several and (self.budget.count is not None or self.budget.fraction is not None):
            raise ValueError(
                "budget: units of several kinds cannot be counted together; give flops or parameters"
            )
        if self.normalize and "layers" in self.units:
            raise ValueError(NOT_FOR_LAYERS)
        return self
