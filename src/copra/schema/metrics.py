"""Which metric scores which kind of unit, and which scoring run makes it."""

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
"""What one forward and backward pass over the calibration set gives."""

SEARCH_METRICS: dict[UnitKind, tuple[Metric, ...]] = {
    "layers": ("loss", "accuracy", "greedy_loss", "greedy_accuracy"),
    "kv_groups": ("loss", "accuracy", "gates"),
    "heads": ("loss", "accuracy", "gates"),
    "neurons": (),
}
"""What takes a run of its own."""

WITHOUT_DATA: dict[UnitKind, tuple[Metric, ...]] = {
    "layers": ("deepest", "random"),
    "kv_groups": ("random",),
    "heads": ("random",),
    "neurons": ("random",),
}
"""What looks at no data and needs no scoring."""

COMPARABLE_ACROSS_UNITS: tuple[Metric, ...] = ("taylor", "magnitude", "random")
"""What scores all kinds of unit on one scale, so that they can compete: sums over weights, by which the heads
and neurons of a layer add up to the layer (0.98 of it on SmolLM2 135M). Not `gradient`, which takes the
absolute value once for each unit: there they add up to 21 times the layer, nearly all of it neurons."""

NORMALIzED: tuple[Metric, ...] = ("activation", "contribution")
"""What grows with the residual stream from layer to layer, so that scores of different layers compare only
after a division by each layer's norm."""

OF_BLOCKS = ("angular", "angular_mean")
"""Metrics that score blocks of neighbouring layers: exactly one block goes."""
GREEDY = ("greedy_loss", "greedy_accuracy")
NEEDS_ANSWERS = ("accuracy", "greedy_accuracy")
"""Metrics for which the model has to answer questions."""

SCORED_AS: dict[UnitKind, str] = {
    "layers": "layer",
    "kv_groups": "kv_group",
    "heads": "head",
    "neurons": "neuron",
}
"""What a kind of unit is called in a table of scores."""


def metrics_of(kind: UnitKind) -> tuple[Metric, ...]:
    """All metrics that score a kind of unit."""
    return BACKWARD_METRICS[kind] + SEARCH_METRICS[kind] + WITHOUT_DATA[kind]


def scoring_of(kind: UnitKind, metric: Metric) -> str | None:
    """The scoring run behind a metric: "passes", one of its own such as "layers.loss", or none."""
    if metric in BACKWARD_METRICS[kind]:
        return "passes"
    return f"{kind}.{metric}" if metric in SEARCH_METRICS[kind] else None


def split_of(scoring: str) -> Literal["train", "valid"]:
    """The split whose rows a scoring run reads: what is left out is judged on rows that no score has seen."""
    return "train" if scoring == "passes" or scoring.endswith(".gates") else "valid"


def counts_answers(scoring: str) -> bool:
    """Whether the model has to answer questions in a scoring run."""
    return scoring.split(".")[-1] in NEEDS_ANSWERS


SCORINGS = ("passes", *(f"{kind}.{metric}" for kind, metrics in SEARCH_METRICS.items() for metric in metrics))
"""All scoring runs."""
