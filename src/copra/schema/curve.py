"""Settings of pruning curves: a model with more and more units removed, without fine-tuning."""

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
"""Metrics whose scores are the same on every objective, so that a curve has one line for each."""
LOSS_FREE: tuple[Metric, ...] = ("cosine", *OF_BLOCKS, "activation", "contribution")
"""Metrics without a loss. Their scores are the same on cot and answer, which read the same tokens."""


@dataclass(frozen=True)
class Line:
    """One line of a curve. None: not applicable."""

    metric: Metric
    objective: Objective | None = None
    """The objective that the metric's scores depend on."""
    table: str | None = None
    """The path of the score table below the model's scores folder."""
    seed: int | None = None
    """The seed of a random order."""


class Curve(Selection):
    """One model with more and more units of one kind removed, selected by several metrics."""

    model: str
    """Model to prune: a recipe of the config or the beginning of one, such as `llama+cot`."""
    unit: UnitKind
    """Kind of unit to remove, as in a prune step."""
    metrics: list[Metric] = Field(min_length=1)
    """Metrics that select the units; the curve has one line per metric."""
    remove: list[PositiveInt] = Field(min_length=1)
    """Numbers of units to remove, one point each. The unpruned model is always measured too."""
    scope: Literal["uniform", "global"] = "global"
    """uniform: remove the same number of units from every layer; global: remove the units with the lowest
    scores of all layers."""
    normalize: bool | None = None
    """If true, the scores in each layer are divided by their L2 norm. The default (null) depends on the
    metric, as in a prune step."""
    objectives: list[Objective] | None = Field(None, min_length=1)
    """Scoring objectives; each metric has one line per objective (null: `importance.objective` alone)."""
    random_seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1)
    """Seeds of the removal orders of metric random. The figure shows these orders as one band."""

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
        """Return the curve with null objectives replaced by the default."""
        return self.model_copy(update={"objectives": self.objectives or [importance.objective]})

    def lines(self) -> Iterator[Line]:
        """Yield the lines of a resolved curve, one per random order."""
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
        """Return the score tables that the lines of a resolved curve need, as in `Line.table`."""
        return list(dict.fromkeys(line.table for line in self.lines() if line.table))

    @property
    def _resolved_objectives(self) -> list[Objective]:
        """The objectives of a resolved curve."""
        assert self.objectives is not None, "Curve.resolved fills them in"
        return self.objectives

    def _different(self, metric: Metric) -> list[Objective]:
        """Return the objectives on which a metric's scores differ."""
        objectives = self._resolved_objectives
        if metric in READS_NOTHING:
            return objectives[:1]
        if metric in LOSS_FREE and {"cot", "answer"} <= set(objectives):
            return [objective for objective in objectives if objective != "answer"]
        return objectives

    def name_of(self, line: Line) -> str:
        """Return the label of a line: its metric, and its objective if the curve has several."""
        several = line.objective is not None and len(self._resolved_objectives) > 1
        return f"{line.metric} ({line.objective})" if several else line.metric

    def step(self, line: Line, number: int = 1) -> Prune:
        """Return the prune step of one point: `number` units removed by the metric of `line`."""
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
    """A resolved curve with its name and the model nodes that it is measured on, one per seed."""

    name: str
    """Name of the curve in the config."""
    curve: Curve
    """Resolved settings of the curve."""
    nodes: list[str]
    """Names of the model nodes."""
