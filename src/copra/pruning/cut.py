"""The units that a pruning keeps, as plain numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from copra.schema.shape import LayerShape, ModelShape
from copra.schema.units import Unit, UnitKind, group_size
from copra.utils.errors import CopraError


@dataclass(frozen=True)
class KeptUnits:
    """The kept layers, and the kept query heads and FFN neurons of each layer of the model before the cut.

    Indices rise. None in `heads` or `neurons` means that the layer keeps all of them. A KV group is kept as
    long as one of its query heads is.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...] | None, ...]
    neurons: tuple[tuple[int, ...] | None, ...]

    @staticmethod
    def whole(shape: ModelShape) -> "KeptUnits":
        """Return the cut that removes nothing."""
        none = (None,) * len(shape.layers)
        return KeptUnits(tuple(range(len(shape.layers))), none, none)

    def without(self, shape: ModelShape, units: Iterable[Unit]) -> "KeptUnits":
        """Return the cut of a model of `shape` that removes `units` as well."""
        gone: dict[tuple[UnitKind, int], set[int]] = {}
        layers = set(self.layers)
        for kind, layer, index in units:
            if kind == "layers":
                layers.discard(layer)
            elif kind == "kv_groups":
                size = group_size(shape.layers[layer])
                gone.setdefault(("heads", layer), set()).update(range(index * size, (index + 1) * size))
            else:
                gone.setdefault((kind, layer), set()).add(index)
        heads, neurons = list(self.heads), list(self.neurons)
        for (kind, layer), indices in gone.items():
            stay, total = (
                (heads, shape.layers[layer].query_heads)
                if kind == "heads"
                else (neurons, shape.layers[layer].ffn)
            )
            stay[layer] = tuple(index for index in _of(stay[layer], total) if index not in indices)
        return KeptUnits(tuple(sorted(layers)), tuple(heads), tuple(neurons))

    def heads_of(self, shape: ModelShape, layer: int) -> tuple[int, ...]:
        """Return the indices of the query heads kept in a layer."""
        return _of(self.heads[layer], shape.layers[layer].query_heads)

    def neurons_of(self, shape: ModelShape, layer: int) -> tuple[int, ...]:
        """Return the indices of the FFN neurons kept in a layer."""
        return _of(self.neurons[layer], shape.layers[layer].ffn)

    def kv_groups_of(self, shape: ModelShape, layer: int) -> tuple[int, ...]:
        """Return the indices of the KV groups kept in a layer."""
        size = group_size(shape.layers[layer])
        return tuple(dict.fromkeys(head // size for head in self.heads_of(shape, layer)))

    def shape(self, shape: ModelShape) -> ModelShape:
        """Return the shape of the pruned model, from `shape` before the cut.

        Raises:
            CopraError: no layer is kept, or a kept layer has no query head or no neuron; KV groups of one
                layer keep unequal numbers of query heads, which no attention kernel can run; or the indices
                do not fit a model of this shape.
        """
        if not self.layers:
            raise CopraError("pruning: no layer would be left; at least one has to stay.")
        _check_indices("the model", "layers", self.layers, len(shape.layers))
        return shape.with_layers(tuple(self._layer(shape, layer) for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "heads": [None if each is None else list(each) for each in self.heads],
            "neurons": [None if each is None else list(each) for each in self.neurons],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "KeptUnits":
        def tuples(layers: list[list[int] | None]) -> tuple[tuple[int, ...] | None, ...]:
            return tuple(None if each is None else tuple(each) for each in layers)

        return KeptUnits(tuple(value["layers"]), tuples(value["heads"]), tuples(value["neurons"]))

    def _layer(self, shape: ModelShape, layer: int) -> LayerShape:
        before = shape.layers[layer]
        heads, groups = self.heads_of(shape, layer), self.kv_groups_of(shape, layer)
        neurons = self.neurons_of(shape, layer)
        if not heads or not neurons:
            what = "neuron" if heads else "query head"
            raise CopraError(f"pruning: no {what} would be left in layer {layer}; at least one has to stay.")
        _check_indices(f"layer {layer}", "query heads", heads, before.query_heads)
        _check_indices(f"layer {layer}", "neurons", neurons, before.ffn)
        counts = Counter(head // group_size(before) for head in heads)
        if len(set(counts.values())) > 1:
            raise CopraError(
                f"pruning: the KV groups of layer {layer} would keep {dict(counts)} query heads, and "
                "grouped-query attention needs equally many in each: remove the same number from every "
                f"group, or whole groups. The nearest legal choice keeps {_nearest_legal(counts)}."
            )
        return replace(before, query_heads=len(heads), kv_heads=len(groups), ffn=len(neurons))


def _check_indices(where: str, what: str, indices: Sequence[int], total: int) -> None:
    if list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= total:
        raise CopraError(
            f"pruning: {where} keeps {what} whose indices do not rise or lie outside 0 to {total - 1}. Make "
            "the plan again from this model's scores."
        )


def _nearest_legal(counts: Mapping[int, int]) -> str:
    """Return, as text, the legal choice that changes the fewest heads: equally many heads in some groups."""
    each = min(
        range(1, max(counts.values()) + 1),
        key=lambda each: (sum(min(abs(count - each), count) for count in counts.values()), -each),
    )
    groups = [group for group, count in counts.items() if abs(count - each) <= count]
    return f"{each} in each of the groups {groups}"


def _of(stay: tuple[int, ...] | None, total: int) -> tuple[int, ...]:
    return tuple(range(total)) if stay is None else stay
