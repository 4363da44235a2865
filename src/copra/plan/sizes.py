"""Sizes of the models of a recipe tree before they are made."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

from copra.cost.parameters import matrix_parameters
from copra.models.base_config import config_of
from copra.models.families import family_of
from copra.models.published_configs import PUBLISHED_CONFIGS
from copra.models.shape import shape_of
from copra.pruning.moves import removal_sequence, shapes_along
from copra.pruning.plan import make_plan
from copra.schema.base import Base
from copra.schema.pruning import Prune
from copra.schema.shape import ModelShape
from copra.utils.errors import CopraError

MOST_REMOVALS = 4096
"""Largest number of removals of neurons that are compared with a budget; for more, they are made larger."""
SEEDS = range(3)
"""Seeds of the random scores that stand in for unknown ones."""

Flops = Callable[[ModelShape], float]
"""FLOPs per answer of a shape."""


@dataclass(frozen=True)
class Size:
    """A model's shape, and the number of weights outside the matrices of its layers."""

    shape: ModelShape
    outside: int

    @property
    def parameters(self) -> int:
        """The number of all weights; before a model is made, without norms and biases (under 1%)."""
        return self.outside + matrix_parameters(self.shape)


def base_size(base: Base, vocabulary: int | None) -> Size | None:
    """Return the size of a base; None if neither its config nor a published one is known.

    `vocabulary` is the size of the tokenizer of a base from scratch.

    Raises:
        CopraError: copra does not support the model type.
    """
    config = config_of(base) or PUBLISHED_CONFIGS.get(base.path or "")
    if config is None:
        return None
    shape = shape_of(config if vocabulary is None else {**config, "vocab_size": vocabulary})
    is_tied = config.get("tie_word_embeddings", family_of(shape.family).tied)
    rows = shape.vocabulary * (1 if is_tied else 2) + config.get("n_positions", 0)
    return Size(shape, rows * shape.hidden)


def recorded_size(manifest: Mapping[str, Any]) -> Size:
    """Return the size in a checkpoint's manifest."""
    shape = ModelShape.from_json(manifest["shape"])
    return Size(shape, manifest["parameters"] - matrix_parameters(shape))


def plan_without_scores(
    prune: Prune, shape: ModelShape, dense: ModelShape, flops_of: Flops, seed: int = 0
) -> dict[str, Any]:
    """Return the plan of a pruning by random scores.

    It removes as many units as by other scores if all layers are alike and one kind of unit is removed.

    Raises:
        CopraError: the budget cannot be met, or nothing would be removed.
    """
    return make_plan(_random(prune, shape), shape, dense, None, flops_of, seed)


def smallest_shape(prune: Prune, shape: ModelShape, flops_of: Flops) -> ModelShape:
    """Return the shape that is left if all removable units are removed."""
    return [*shapes_along(shape, removal_sequence(_random(prune, shape), shape, None, flops_of, 0))][-1]


def removed_together(prune: Prune, shape: ModelShape) -> int:
    """Return the number of neurons that are removed together: `multiple_of`, or more of very many."""
    neurons = sum(layer.ffn for layer in shape.layers)
    return prune.multiple_of * ceil(neurons / prune.multiple_of / MOST_REMOVALS)


def pruned_shapes(
    prune: Prune, shape: ModelShape, dense: ModelShape, flops_of: Flops
) -> tuple[ModelShape, ModelShape]:
    """Return the shapes with the fewest and the most FLOPs that a pruning may leave.

    If they depend on scores, these are the extremes over several random scores and, if several kinds of unit
    compete, over prunings of each kind alone. A budget that cannot be met leaves the shape as it is.
    """
    seeds, prunings = SEEDS[:1], [prune]
    if len(prune.units) > 1 or len(set(shape.layers)) > 1:
        seeds = SEEDS
        prunings += [prune.model_copy(update={"unit": kind}) for kind in prune.units]
    found = []
    for each, seed in product(prunings, seeds):
        with suppress(CopraError):
            plan = plan_without_scores(each, shape, dense, flops_of, seed)
            found.append(ModelShape.from_json(plan["shape_after"]))
    found = found or [shape]
    return min(found, key=flops_of), max(found, key=flops_of)


def _random(prune: Prune, shape: ModelShape) -> Prune:
    """Return a pruning by random scores, which need no data."""
    changes = {"metric": "random", "normalize": False, "multiple_of": removed_together(prune, shape)}
    return prune.model_copy(update=changes)
