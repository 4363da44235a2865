"""Kinds of unit that a pruning can remove."""

from typing import Literal, get_args

from copra.schema.shape import LayerShape, ModelShape

UnitKind = Literal["layers", "kv_groups", "heads", "neurons"]
Unit = tuple[UnitKind, int, int]
"""A kind, a layer index, and the index within that layer (for kind layers: the layer index again)."""
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)
UNIT_NAMES: dict[UnitKind, str] = {
    "layers": "layers",
    "kv_groups": "KV groups",
    "heads": "query heads",
    "neurons": "neurons",
}


def units_of(kind: UnitKind, shape: ModelShape) -> list[tuple[int, int]]:
    """Return all units of a kind as (layer, index)."""
    if kind == "layers":
        return [(layer, layer) for layer in range(len(shape.layers))]
    size = {"kv_groups": "kv_heads", "heads": "query_heads", "neurons": "ffn"}[kind]
    counts = [getattr(sizes, size) for sizes in shape.layers]
    return [(layer, index) for layer, count in enumerate(counts) for index in range(count)]


def group_size(layer: LayerShape) -> int:
    """Return the number of query heads per key/value head."""
    return layer.query_heads // layer.kv_heads
