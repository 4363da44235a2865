"""The description of a model family: its sizes in the config, its modules, and its pruning limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal["query", "key", "value", "neuron"]
"""Kinds of output channels of a projection: D per query head, per KV group's key and per KV group's value,
and one per neuron."""

PREFIX = "copra_"
"""The prefix of the model types of copra's own classes, whose layers may differ in their sizes."""


@dataclass(frozen=True)
class Projection:
    """A projection from the residual stream into a layer's heads or neurons.

    `makes` are the kinds of its output channels in order. With `by_head` the order is per query head:
    [H, makes, D].
    """

    name: str
    makes: tuple[Part, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Layout:
    """The names of the modules in a decoder layer.

    The inputs of `attention_output` are the query heads' outputs side by side, [H*D], and those of
    `ffn_output` the neurons' activations, [I]. `transposed` weights are stored as [in, out].
    """

    projections: tuple[Projection, ...]
    attention_output: str
    ffn_output: str
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all modules."""
        return (*(each.name for each in self.projections), self.attention_output, self.ffn_output)

    @property
    def ffn_matrices(self) -> int:
        """The number of matrices of width I in the FFN; gate and up in one projection count as two."""
        return sum(each.makes.count("neuron") for each in self.projections) + 1


@dataclass(frozen=True)
class Cannot:
    """Unit types that models of a family cannot lose."""

    units: tuple[str, ...]
    reason: str
    setting: str | None = None
    """Name of a config setting; if given, only models whose config sets it."""


def no_window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return None, the window of a layer that attends to all positions before it."""
    return None


@dataclass(frozen=True)
class Family:
    """One model type of transformers.

    The first fields are the names of the sizes in its config; `kv_heads` is None if every query head has its
    own key/value head. A missing `head_dim` is the width divided by the heads, unless `defaults` has it.
    """

    model_type: str
    layout: Layout
    width: str = "hidden_size"
    layers: str = "num_hidden_layers"
    query_heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    ffn: str = "intermediate_size"
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Default values of sizes that a config may omit and that do not follow from the others."""
    ffn_per_width: int | None = None
    """The ratio of the FFN's width to the model's, if a config omits the FFN's width."""
    heads_fill_width: bool = False
    """True if the plain class has no separate head size: its heads together are as wide as the model."""
    by_layer: tuple[str, ...] = ()
    """Names of config settings with one entry per layer."""
    window: Callable[[Mapping[str, Any], int], int | None] = no_window
    """Function from config and layer index to the number of positions that the layer attends to, its own
    included; None: all."""
    tied: bool = False
    """True if the LM head shares the embedding's weights by default."""
    cannot: tuple[Cannot, ...] = ()
    """Unit types that cannot be pruned."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Config settings that make a model no causal decoder, each with the reason."""
