"""The metrics that score each kind of unit, and the scoring run that computes each metric."""

from typing import Literal

from copra.schema.units import UnitKind

Metric = Literal[
    "cosine",
    "angular",
    "angular_mean",
    "deepest",
    "gradient",
    "activation",
    "contribution",
    "taylor",
    "magnitude",
    "loss",
    "accuracy",
    "greedy_loss",
    "greedy_accuracy",
    "gates",
    "random",
]

BACKWARD_METRICS: dict[UnitKind, tuple[Metric, ...]] = {
    "layers": ("cosine", "angular", "angular_mean", "gradient", "taylor", "magnitude"),
    "kv_groups": ("gradient", "activation", "contribution", "taylor", "magnitude"),
    "heads": ("gradient", "activation", "contribution", "taylor", "magnitude"),
    "neurons": ("gradient", "activation", "taylor", "magnitude"),
}
"""Metrics that one forward and backward pass over the calibration set computes."""

SEARCH_METRICS: dict[UnitKind, tuple[Metric, ...]] = {
    "layers": ("loss", "accuracy", "greedy_loss", "greedy_accuracy"),
    "kv_groups": ("loss", "accuracy", "gates"),
    "heads": ("loss", "accuracy", "gates"),
    "neurons": (),
}
"""Metrics that each need a scoring run of their own."""

WITHOUT_DATA: dict[UnitKind, tuple[Metric, ...]] = {
    "layers": ("deepest", "random"),
    "kv_groups": ("random",),
    "heads": ("random",),
    "neurons": ("random",),
}
"""Metrics that read no data and need no scoring run."""

COMPARABLE_ACROSS_UNITS: tuple[Metric, ...] = ("taylor", "magnitude", "random")
"""Metrics that score all kinds of unit on one scale, so that kinds can compete. They are sums over weights:
the scores of a layer's heads and neurons add up to the layer's score (0.98 of it on SmolLM2 135M). `gradient`
takes the absolute value once per unit: there the sum is 21 times the layer's score, nearly all of it
neurons."""

NORMALIZED: tuple[Metric, ...] = ("activation", "contribution")
"""Metrics that grow with the residual stream from layer to layer. Scores of different layers are comparable
only after division by each layer's norm."""

OF_BLOCKS: tuple[Metric, ...] = ("angular", "angular_mean")
"""Metrics that score blocks of neighboring layers: a pruning removes exactly one block."""
GREEDY: tuple[Metric, ...] = ("greedy_loss", "greedy_accuracy")
NEEDS_ANSWERS: tuple[Metric, ...] = ("accuracy", "greedy_accuracy")
"""Metrics for which the model must answer questions."""

SCORED_AS: dict[UnitKind, str] = {
    "layers": "layer",
    "kv_groups": "kv_group",
    "heads": "head",
    "neurons": "neuron",
}
"""Name of each kind of unit in a score table."""


def metrics_of(kind: UnitKind) -> tuple[Metric, ...]:
    """Return all metrics that score a kind of unit."""
    return BACKWARD_METRICS[kind] + SEARCH_METRICS[kind] + WITHOUT_DATA[kind]


def scoring_of(kind: UnitKind, metric: Metric) -> str | None:
    """Return the scoring run of a metric: "passes", a run of its own such as "layers.loss", or None."""
    if metric in BACKWARD_METRICS[kind]:
        return "passes"
    return f"{kind}.{metric}" if metric in SEARCH_METRICS[kind] else None


def searched_by(scoring: str) -> tuple[UnitKind, Metric]:
    """Return the kind of unit and the metric of a search, a scoring run such as "layers.loss"."""
    pairs = ((kind, metric) for kind, metrics in SEARCH_METRICS.items() for metric in metrics)
    return next((kind, metric) for kind, metric in pairs if scoring == f"{kind}.{metric}")


def split_of(scoring: str) -> Literal["train", "valid"]:
    """Return the split that a scoring run reads.

    Searches measure removals on validation rows, which no calibration pass has read.
    """
    return "train" if scoring == "passes" or scoring.endswith(".gates") else "valid"


def counts_answers(scoring: str) -> bool:
    """True if the model must answer questions in a scoring run."""
    return scoring.split(".")[-1] in NEEDS_ANSWERS


SCORINGS = ("passes", *(f"{kind}.{metric}" for kind, metrics in SEARCH_METRICS.items() for metric in metrics))
"""Names of all scoring runs."""
