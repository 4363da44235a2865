"""Settings of a loop over layers."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from copra.schema.settings import MOST_LAYERS, Settings, one_or_list

LayerIndex = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Layers = Annotated[
    Annotated[Literal["all"], Tag("one")] | Annotated[tuple[LayerIndex, LayerIndex], Tag("list")],
    Discriminator(one_or_list),
]


class Loop(Settings):
    """A block of decoder layers that is run several times at every position, with the same weights.

    The hidden states after a pass through the block are the input of the next pass, unchanged: there is no
    adapter, and the block's first input is not injected again. Every pass has its own keys and values in the
    cache.
    """

    layers: Layers = "all"
    """The block: all layers, or the indices of its first and its last layer, `[first, last]`, counted from 0
    in the model that is trained."""
    times: int = Field(2, ge=1, le=MOST_LAYERS)
    """Number of passes through the block. 1 is an ordinary model."""

    @field_validator("layers")
    @classmethod
    def _in_order(cls, value: Layers) -> Layers:
        if value != "all" and value[1] < value[0]:
            raise ValueError(f"the block ends with layer {value[1]}, before its first one. Swap the two")
        return value

    def visits(self, layers: int) -> list[int]:
        """Return the indices of a model's `layers` layers in the order in which a position visits them."""
        first, last = (0, layers - 1) if self.layers == "all" else self.layers
        return [*range(first), *[*range(first, last + 1)] * self.times, *range(last + 1, layers)]

    def passes(self, visits: int) -> float:
        """Return the depth of a model with so many visits of layers, in passes through an ordinary model."""
        if self.layers == "all":
            return self.times
        first, last = self.layers
        return visits / (visits - (self.times - 1) * (last + 1 - first))

    def problem(self, layers: int, model: str) -> str | None:
        """Return why `model`, which has so many layers, cannot be looped, with the key; None if it can."""
        if self.layers != "all" and self.layers[1] >= layers:
            return f"layers: there is no layer {self.layers[1]}. {model} has {layers} layers, counted from 0."
        if (visits := len(self.visits(layers))) > MOST_LAYERS:
            return f"times: {visits} visits of layers are more than {MOST_LAYERS}. Lower it."
        return None
