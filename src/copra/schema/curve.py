"""Pruning curves: a model with fewer and fewer units, by several metrics, without fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from copra.schema.metrics import OF_BLOCKS, Metric, metrics_of, scoring_of
from copra.schema.pruning import NOT_FOR_LAYERS, Budget, Prune, Selection
from copra.schema.scoring import Importance, Objective
from copra.schema.settings import Seed, Settings
from copra.schema.units import UnitKind

READS_NOTHING: tuple[Metric, ...] = ("accuracy", "greedy_accuracy", "magnitude")
"""Metrics whose scores are the same on every objective, so that they have one line."""
LOSS_FREE: tuple[Metric, ...] = ("cosine", *OF_BLOCKS, "activation", "contribution")
"""Metrics without a loss, whose scores are the same on objectives that read the same: cot and answer."""


@dataclass(frozen=True)
class Line:
    """One line of a curve: a metric, the objective that its scores depend on, its table of scores from the
    folder of a model's scores on, and the seed of a random order; None where there is no such thing."""

    metric: Metric
    objective: Objective | None = None
    table: str | None = None
    seed: int | None = None


class Curve(Selection):
    """One model with fewer and fewer units of a kind, chosen by several metrics."""

    model: str
    """The model: a recipe of the config or the beginning of one, such as `llama+cot`."""
    unit: UnitKind
    """What is removed, as in a prune step."""
    metrics: list[Metric] = Field(min_length=1)
    """The metrics that choose, a line each."""
    remove: list[PositiveInt] = Field(min_length=1)
    """Numbers of units removed. The whole model is always measured too."""
    scope: Literal["uniform", "global"] = "global"
    """The same number from every layer, or the lowest scores wherever they are."""
    normalize: bool | None = None
    """Divide scores in each layer by their L2 norm, as in a prune step, whose default for null depends on the
    metric."""
    objectives: list[Objective] | None = Field(None, min_length=1)
    """What the scores are taken on, a line of each metric for each (null: `importance.objective` alone)."""
    random_seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1)
    """Orders of metric random; the figure shows them as one band."""

    @model_validator(mode="after")
    def _legal_combination(self) -> "Curve":
        for key in ("metrics", "remove", "objectives", "random_seeds"):
            values = getattr(self, key) or []
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{key}: {twice[0]!r} is given twice")
        if self.normalize and self.unit == "layers":
            raise ValueError(NOT_FOR_LAYERS)
        for metric in self.metrics:
            if metric not in (known := metrics_of(self.unit)):
                raise ValueError(
                    f"metrics: {metric!r} does not score {self.unit}; take of {', '.join(known)}"
                )
        return self

    def resolved(self, importance: Importance) -> "Curve":
        """The curve with its objectives written out."""
        return self.model_copy(update={"objectives": self.objectives or [importance.objective]})

    def lines(self) -> Iterator[Line]:
        """The lines of a resolved curve; the random orders are one each."""
        for metric in self.metrics:
            scoring = scoring_of(self.unit, metric)
            if scoring is None:
                seeds = self.random_seeds if metric == "random" else [None]
                yield from (Line(metric, seed=seed) for seed in seeds)
            else:
                for objective in self._different(metric):
                    named = None if metric in READS_NOTHING else objective
                    yield Line(metric, named, f"{objective}/{scoring}.parquet")

    def tables(self) -> list[str]:
        """The tables of scores that the lines of a resolved curve need, as `Line.table` has them."""
        return list(dict.fromkeys(line.table for line in self.lines() if line.table))

    def _different(self, metric: Metric) -> list[Objective]:
        """The objectives on which a metric's scores differ."""
        if metric in READS_NOTHING:
            return self.objectives[:1]
        if metric in LOSS_FREE and {"cot", "answer"} <= set(self.objectives):
            return [objective for objective in self.objectives if objective != "answer"]
        return self.objectives

    def name_of(self, line: Line) -> str:
        """What a line is called: its metric, and its objective where the curve has several."""
        several = line.objective is not None and len(self.objectives) > 1
        return f"{line.metric} ({line.objective})" if several else line.metric

    def step(self, line: Line, number: int = 1) -> Prune:
        """The prune step behind a point: so many units removed by a line's metric."""
        same = {name: getattr(self, name) for name in Selection.model_fields}
        return Prune(
            kind="prune",
            unit=self.unit,
            metric=line.metric,
            budget=Budget(count=number),
            normalize=self.normalize,
            **same,
        )


class NamedCurve(Settings):
    """A resolved curve with its name, and the nodes that it is measured on, one a seed."""

    name: str
    """Its name in the config."""
    curve: Curve
    """What is removed, and by what."""
    nodes: list[str]
    """The models."""
