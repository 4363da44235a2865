"""How far a model's layers attend."""

import math

from transformers import DynamicCache, PreTrainedModel


def shortest_window(model: PreTrainedModel) -> float:
    """The fewest positions, its own among them, that a layer attends to; infinity where all attend to all
    before."""
    layers = DynamicCache(config=model.config).layers
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=math.inf)
