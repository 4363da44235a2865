"""A family of models: its sizes in the config, its parts, and how they are cut."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal["query", "key", "value", "neuron"]
"""Kinds of output channels of a projection: D for each query head, for each KV group's key and value, and one
for each neuron."""

PREFIX = "copra_"
"""The beginning of the model types of copra's own classes, whose layers may differ in their sizes."""


@dataclass(frozen=True)
class Projection:
    """A projection from the residual stream into a layer's heads or neurons.

    `makes` are its output channels side by side. With `by_head` they stand head by head, all of one query
    head before those of the next: [H, makes, D].
    """

    name: str
    makes: tuple[Part, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Layout:
    """The names of the parts in a decoder layer.

    The inputs of `attention_output` are the query heads' outputs side by side, [H*D], and those of
    `ffn_output` the neurons' activations, [I]. `transposed` weights are stored as [in, out].
    """

    projections: tuple[Projection, ...]
    attention_output: str
    ffn_output: str
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All parts."""
        return (*(each.name for each in self.projections), self.attention_output, self.ffn_output)

    @property
    def ffn_matrices(self) -> int:
        """The matrices of width I in the FFN; gate and up in one projection are two."""
        return sum(each.makes.count("neuron") for each in self.projections) + 1


@dataclass(frozen=True)
class Cannot:
    """Kinds of unit that models of a family cannot lose, and the reason; with `setting` only those whose
    config has it."""

    units: tuple[str, ...]
    reason: str
    setting: str | None = None


def no_window(config: Mapping[str, Any], layer: int) -> int | None:
    """The window of a layer that attends to all positions before it: None."""
    return None


@dataclass(frozen=True)
class Family:
    """One model type of transformers.

    The first fields say what its config calls its sizes; `kv_heads` is None where every query head has its
    own, and `head_dim` what is not written out is the width over the heads, unless `defaults` says otherwise.
    """

    model_type: str
    layout: Layout
    width: str = "hidden_size"
    layers: str = "num_hidden_layers"
    query_heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    ffn: str = "intermediate_size"
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Sizes that a config may leave out though they do not follow from the others."""
    ffn_per_width: int | None = None
    """The FFN's width over the model's, where a config leaves it out."""
    heads_fill_width: bool = False
    """The plain class has no head size of its own: its heads together are as wide as the model."""
    blocks: str = "layers"
    """The list of decoder layers in the model without its LM head."""
    by_layer: tuple[str, ...] = ()
    """Settings with an entry per layer."""
    window: Callable[[Mapping[str, Any], int], int | None] = no_window
    """The number of positions that a layer attends to, its own included, by config and the layer's number;
    None: all."""
    scaled_embedding: bool = False
    """The embedding multiplies its rows by `embed_scale`, the square root of the width."""
    tied: bool = False
    """The LM head shares the embedding's weights where the config does not say."""
    cannot: tuple[Cannot, ...] = ()
    """Kinds of unit that cannot be pruned."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Settings that make a model no causal decoder, with the reason."""
