"""Sizes of a decoder and its layers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from copra.schema.loop import Loop


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer: H query heads and K key/value heads of size D, FFN of width I.

    `window` is the number of positions that a token attends to, its own included (None: all up to its own).
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    window: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """All sizes of a decoder: hidden width d, vocabulary V, and its layers from bottom to top.

    `family` is the model type of its plain class. `ffn_matrices` is 3 for gate, up and down, and 2 for a
    pair as in GPT-2.
    """

    family: str
    hidden: int
    vocabulary: int
    ffn_matrices: int
    layers: tuple[LayerShape, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "ModelShape":
        return ModelShape(**{**value, "layers": tuple(LayerShape(**layer) for layer in value["layers"])})

    def with_layers(self, layers: tuple[LayerShape, ...]) -> "ModelShape":
        return replace(self, layers=layers)

    def looped(self, loop: Loop | None) -> "ModelShape":
        """Return the shape with a layer for each visit of a layer (None: no loop)."""
        if loop is None:
            return self
        return self.with_layers(tuple(self.layers[index] for index in loop.visits(len(self.layers))))
