"""Run decoder layers several times at every position, with the same weights (looped models).

The files of a looped model are those of the ordinary model. In memory its config describes the visits of
layers instead of the layers, so that transformers' own forward passes, masks and caches work unchanged.
Weights, their names and their gradients are those of the layers.

This file travels with checkpoints (see `copra.models.thinking`), so it imports only torch and transformers.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .hooks import decoder_layers, name_of_layers


class Visit(nn.Module):
    """One visit of a decoder layer, with a place of its own in the cache."""

    def __init__(self, layer: nn.Module, place: int):
        super().__init__()
        self.layer = layer
        self.attention = attention_of(layer)
        self.place = place

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        self.attention.layer_idx = self.place
        return self.layer(*arguments, **settings)


class LoopedLayers(nn.ModuleList):
    """The decoder layers of a looped model: each is registered once and iterated over once per visit.

    `ordinary` are the settings of the config that describe the layers, `looped` those that describe the
    visits.
    """

    def __init__(self, layers: nn.ModuleList, visits: Sequence[int], ordinary: dict[str, Any]):
        super().__init__()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        # A tuple is no submodule, so that the visits add no names of weights.
        self.visits = tuple(Visit(layers[index], place) for place, index in enumerate(visits))
        self.ordinary = ordinary
        self.looped = {
            key: [value[index] for index in visits] if isinstance(value, list) else len(visits)
            for key, value in ordinary.items()
        }

    def __len__(self) -> int:
        return len(self.visits)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.visits)

    def __getitem__(self, index: Any) -> Any:
        return self.visits[index]


def visit_layers(model: PreTrainedModel, visits: Sequence[int], by_layer: Sequence[str]) -> None:
    """Loop an ordinary model in place: its layers are run in the order of `visits`, which are their indices.

    `by_layer` are the settings of the config with one value per layer, which a config may lack.
    """
    layers, config = decoder_layers(model), model.config
    if isinstance(layers, LoopedLayers):
        raise ValueError("the model is looped already")
    keys = ("num_hidden_layers", *by_layer)
    ordinary = {key: value for key in keys if (value := getattr(config, key, None)) is not None}
    looped = LoopedLayers(layers, visits, ordinary)
    _replace_layers(model, looped, looped.looped)


@contextlib.contextmanager
def unlooped(model: PreTrainedModel) -> Iterator[None]:
    """Make a looped model the ordinary model of its files within this context, with the same weights."""
    looped = decoder_layers(model)
    if not isinstance(looped, LoopedLayers):
        yield
        return
    layers = nn.ModuleList(looped.children())
    for place, layer in enumerate(layers):
        attention_of(layer).layer_idx = place
    _replace_layers(model, layers, looped.ordinary)
    try:
        yield
    finally:
        _replace_layers(model, looped, looped.looped)


def attention_of(layer: nn.Module) -> Any:
    """Return the attention module of a decoder layer, whose `layer_idx` is its place in the cache."""
    return next(part for part in layer.modules() if part is not layer and hasattr(part, "layer_idx"))


def _replace_layers(model: PreTrainedModel, layers: nn.ModuleList, settings: dict[str, Any]) -> None:
    """Replace the list of decoder layers, and the settings of the config that describe it."""
    setattr(model.base_model, name_of_layers(model), layers)
    for key, value in settings.items():
        setattr(model.config, key, value)
