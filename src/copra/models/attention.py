"""The attention windows of a model's layers."""

import math

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer


def shortest_window(model: PreTrainedModel) -> float:
    """Return the smallest number of positions, its own included, that a layer attends to.

    It is infinity if no layer has a window.
    """
    layers = DynamicCache(config=model.config).layers
    return min(
        (layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)),
        default=math.inf,
    )
