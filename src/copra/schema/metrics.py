"""The metrics that score each kind of unit, and the scoring run that computes each metric.

Metrics of plugins are known by name, and imported when the settings of a pruning are checked.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from copra.schema.pass_metric import PassMetric
from copra.schema.units import UNIT_KINDS, UnitKind
from copra.utils.plugins import plugins_of
from copra.utils.problems import shown

OwnMetric = Literal[
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
"""copra's own metrics."""

METRIC_PLUGINS = plugins_of("copra.metrics", get_args(OwnMetric))
if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[(*get_args(OwnMetric), *METRIC_PLUGINS)]

BACKWARD_METRICS: dict[UnitKind, tuple[OwnMetric, ...]] = {
    "layers": ("cosine", "angular", "angular_mean", "gradient", "taylor", "magnitude"),
    "kv_groups": ("gradient", "activation", "contribution", "taylor", "magnitude"),
    "heads": ("gradient", "activation", "contribution", "taylor", "magnitude"),
    "neurons": ("gradient", "activation", "taylor", "magnitude"),
}
"""Metrics that one forward and backward pass over the calibration set computes."""

SEARCH_METRICS: dict[UnitKind, tuple[OwnMetric, ...]] = {
    "layers": ("loss", "accuracy", "greedy_loss", "greedy_accuracy"),
    "kv_groups": ("loss", "accuracy", "gates"),
    "heads": ("loss", "accuracy", "gates"),
    "neurons": (),
}
"""Metrics that each need a scoring run of their own."""

WITHOUT_DATA: dict[UnitKind, tuple[OwnMetric, ...]] = {
    "layers": ("deepest", "random"),
    "kv_groups": ("random",),
    "heads": ("random",),
    "neurons": ("random",),
}
"""Metrics that read no data and need no scoring run."""

COMPARABLE_ACROSS_UNITS: tuple[OwnMetric, ...] = ("taylor", "magnitude", "random")
"""Metrics that score all kinds of unit on one scale, so that kinds can compete. They are sums over weights:
the scores of a layer's heads and neurons add up to the layer's score (0.98 of it on SmolLM2 135M). `gradient`
takes the absolute value once per unit: there the sum is 21 times the layer's score, nearly all of it
neurons."""

NORMALIZED: tuple[OwnMetric, ...] = ("activation", "contribution")
"""Metrics that grow with the residual stream from layer to layer. Scores of different layers are comparable
only after division by each layer's norm."""

OF_BLOCKS: tuple[OwnMetric, ...] = ("angular", "angular_mean")
"""Metrics that score blocks of neighboring layers: a pruning removes exactly one block."""
GREEDY: tuple[OwnMetric, ...] = ("greedy_loss", "greedy_accuracy")
NEEDS_ANSWERS: tuple[OwnMetric, ...] = ("accuracy", "greedy_accuracy")
"""Metrics for which the model must answer questions."""

SCORED_AS: dict[UnitKind, str] = {
    "layers": "layer",
    "kv_groups": "kv_group",
    "heads": "head",
    "neurons": "neuron",
}
"""Name of each kind of unit in a score table."""


@cache
def plugin_metrics() -> Mapping[Metric, PassMetric]:
    """Return the metrics of plugins by name.

    Raises:
        CopraError: one cannot be imported, or is no metric.
    """
    found = {}
    for name, plugin in METRIC_PLUGINS.items():
        metric = plugin.load(PassMetric)()  # type: ignore[type-abstract]  # it loads subclasses
        units = getattr(metric, "units", ())
        if not units or not set(units) <= set(UNIT_KINDS):
            raise plugin.problem(f"its units {shown(units)} are not of {', '.join(UNIT_KINDS)}")
        found[name] = metric
    return found


def metrics_of(kind: UnitKind) -> tuple[Metric, ...]:
    """Return all metrics that score a kind of unit."""
    others = tuple(name for name, metric in plugin_metrics().items() if kind in metric.units)
    return BACKWARD_METRICS[kind] + SEARCH_METRICS[kind] + WITHOUT_DATA[kind] + others


def comparable_across_units() -> tuple[Metric, ...]:
    """Return all metrics that score all their kinds of unit on one scale, so that kinds can compete."""
    others = (name for name, metric in plugin_metrics().items() if metric.is_comparable_across_units)
    return (*COMPARABLE_ACROSS_UNITS, *others)


def is_normalized(metric: Metric) -> bool:
    """True if scores are divided by their layer's norm where layers compete and no config says otherwise."""
    return metric in NORMALIZED or (metric in METRIC_PLUGINS and plugin_metrics()[metric].is_normalized)


def scoring_of(kind: UnitKind, metric: Metric) -> str | None:
    """Return the scoring run of a metric: "passes", one of its own such as "layers.loss", or None."""
    if metric in METRIC_PLUGINS:
        return f"passes.{metric}"
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
    return "train" if reads_passes(scoring) or scoring.endswith(".gates") else "valid"


def reads_passes(scoring: str) -> bool:
    """True if a scoring run is one forward and backward pass: of copra's metrics, or of a plugin's one."""
    return scoring.split(".")[0] == "passes"


def counts_answers(scoring: str) -> bool:
    """True if the model must answer questions in a scoring run."""
    return scoring.split(".")[-1] in NEEDS_ANSWERS


SCORINGS = (
    "passes",
    *(f"{kind}.{metric}" for kind, metrics in SEARCH_METRICS.items() for metric in metrics),
    *(f"passes.{metric}" for metric in METRIC_PLUGINS),
)
"""Names of all scoring runs."""
