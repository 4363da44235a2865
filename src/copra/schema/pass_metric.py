"""The interface of metrics in plugins: scores of units from one forward and backward pass per batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from copra.schema.shape import LayerShape
from copra.schema.units import UnitKind

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LayerPass:
    """A decoder layer in one pass over a batch of B examples with M tokens in all, padding left out.

    Tensors hold a row per token, example by example, at least in float32. A gradient is that of the loss of
    the token's own example, which is the mean cross-entropy over the example's supervised positions.
    """

    layer: int
    """Index of the layer."""
    block: "nn.Module"
    """The layer with its weights."""
    shape: LayerShape
    """Sizes of the layer: H query heads of size D, K key/value heads, I neurons."""
    tokens: list[int]
    """Number of tokens of each example; their sum is M."""
    inputs: "Tensor"
    """The residual stream before the layer, [M, d]."""
    outputs: "Tensor"
    """The residual stream after the layer, [M, d]."""
    outputs_gradient: "Tensor"
    """Gradient with respect to `outputs`, [M, d]."""
    heads: "Tensor"
    """The heads' outputs before the output projection, one head after another, [M, H*D]."""
    heads_gradient: "Tensor"
    """Gradient with respect to `heads`, [M, H*D]."""
    neurons: "Tensor"
    """The neurons' activations before the down projection, [M, I]."""
    neurons_gradient: "Tensor"
    """Gradient with respect to `neurons`, [M, I]."""
    example_sums: "Callable[[Tensor], Tensor]"
    """Returns sums over the tokens of each example: [B, C] in float64 from [M, C]."""


@dataclass(frozen=True)
class LayerSums:
    """A decoder layer after the passes over all batches of the calibration set."""

    layer: int
    """Index of the layer."""
    block: "nn.Module"
    """The layer with its weights, whose `grad` is the sum of the gradients of all examples' losses."""
    shape: LayerShape
    """Sizes of the layer."""
    examples: int
    """Number of examples of the calibration set."""
    tokens: int
    """Number of their tokens."""
    sums: "Mapping[str, Tensor]"
    """Sums over the batches by name, as the metric's `sums` returned them."""


class PassMetric(ABC):
    """A metric that scores units from what one forward and backward pass over the calibration set yields.

    The unit with the lowest score is removed first. A plugin defines a subclass, of which copra makes an
    instance without arguments, and names it in the group `copra.metrics` of its entry points.
    """

    units: ClassVar[tuple[UnitKind, ...]]
    """Kinds of unit that the metric scores: of layers, kv_groups, heads and neurons."""
    is_comparable_across_units: ClassVar[bool] = False
    """True if the scores of all `units` are on one scale, so that kinds can compete in one pruning."""
    is_normalized: ClassVar[bool] = False
    """True if scores grow from layer to layer, so that `normalize` is on unless a config says otherwise."""

    def sums(self, seen: LayerPass) -> "Mapping[str, Tensor]":
        """Return what a batch adds to the sums of a layer, by name; metrics of weights alone add nothing."""
        return {}

    @abstractmethod
    def scores(self, seen: LayerSums) -> "Mapping[UnitKind, Tensor]":
        """Return the scores of a layer's units by kind: [] of the layer, [K], [H] and [I] of its units."""
