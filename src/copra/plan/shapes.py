"""Shapes and sizes of the models of a recipe tree, before they are made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from copra.cost.flops import of_typical_answer
from copra.cost.parameters import block_parameters, matrix_parameters
from copra.models.base_config import config_of
from copra.models.families import family_of
from copra.models.shape import shape_of
from copra.schema.base import Base, FromScratch
from copra.schema.pruning import Prune
from copra.schema.shape import LayerShape, ModelShape
from copra.schema.units import group_size, units_of

SPECIAL, MARKERS = 3, 3
"""Number of special tokens (padding, end, unknown) and of latent markers in a tokenizer that copra trains."""


MOST_CUTS = 2**14
"""Largest number of cuts that are enumerated one by one; for more, steps are larger."""


@dataclass(frozen=True)
class Size:
    """A model's shape, and the number of weights outside its layers."""

    shape: ModelShape
    outside: int

    @property
    def parameters(self) -> int:
        """Number of all weights; exact for GPT-2 and Llama, biases and norms included."""
        return self.outside + sum(map(sum, _layers(self.shape)))

    def pruned(self, shape: ModelShape) -> "Size":
        return replace(self, shape=shape)


def base_size(base: Base, words: int | None) -> Size | None:
    """Return the size of a base from its settings, its folder or the Hub's cache; None if none has it.

    `words` is the number of different tokens in its text, if that is known.

    Raises:
        CopraError: copra does not support the model type.
    """
    if base.from_scratch is not None:
        return _from_scratch(base.from_scratch, words)
    config = config_of(base)
    return None if config is None else size_of(config)


def size_of(config: Mapping[str, Any]) -> Size:
    """Return the size of a model from its config.json."""
    shape = shape_of(config)
    tied = config.get("tie_word_embeddings", family_of(shape.family).tied)
    return _size(shape, tied, config.get("n_positions", 0))


def recorded_size(manifest: Mapping[str, Any]) -> Size:
    """Return the size that a checkpoint's manifest records."""
    shape = ModelShape.from_json(manifest["shape"])
    return Size(shape, manifest["parameters"] - sum(map(sum, _layers(shape))))


def estimated_cut(
    prune: Prune, shape: ModelShape, dense: ModelShape, typical: Mapping[str, int]
) -> ModelShape:
    """Return the estimated shape after a pruning, before any score is known: an even cut over the layers.

    Counts and fractions are exact to a unit; budgets of FLOPs or parameters give the nearest even cut.
    """
    total = sum(len(units_of(kind, shape)) for kind in prune.units)
    budget = prune.budget
    if budget.count is not None or budget.fraction is not None:
        wanted = budget.count if budget.count is not None else budget.fraction * total

        def distance(gone: int, left: ModelShape) -> float:
            return abs(gone - wanted)

    else:
        target = budget.flops if budget.flops is not None else budget.parameters

        def measure(left: ModelShape) -> float:
            return matrix_parameters(left) if budget.flops is None else of_typical_answer(left, typical).total

        def distance(gone: int, left: ModelShape) -> float:
            return abs(measure(left) / measure(dense) - target)

    return min(even_cuts(prune, shape), key=lambda cut: distance(*cut))[1]


def _from_scratch(spec: FromScratch, words: int | None) -> Size:
    heads = spec.kv_heads or spec.heads
    layer = LayerShape(spec.heads, heads, spec.hidden_size // spec.heads, spec.intermediate_size)
    # A byte-level BPE reaches its allowed vocabulary on most texts; a word vocabulary is often smaller.
    learned = words + SPECIAL if words is not None and spec.tokenizer == "words" else spec.vocabulary
    vocabulary = min(learned, spec.vocabulary) + MARKERS
    matrices = 3 if spec.architecture == "llama" else 2
    shape = ModelShape(spec.architecture, spec.hidden_size, vocabulary, matrices, (layer,) * spec.layers)
    return _size(
        shape, spec.tie_word_embeddings, spec.max_position_embeddings if spec.architecture == "gpt2" else 0
    )


def _size(shape: ModelShape, tied: bool, positions: int) -> Size:
    norm = 2 if shape.family == "gpt2" else 1
    embeddings = shape.vocabulary * (1 if tied else 2) + positions
    return Size(shape, (embeddings + norm) * shape.hidden)


def _layers(shape: ModelShape) -> Iterator[tuple[int, int]]:
    """Yield the numbers of weights of each layer: of its matrices, and of its norms and biases."""
    d = shape.hidden
    for layer, matrices in zip(shape.layers, block_parameters(shape), strict=True):
        small = 2 * d
        if shape.family == "gpt2":
            small = 6 * d + layer.head_dim * (layer.query_heads + 2 * layer.kv_heads) + layer.ffn
        yield sum(matrices.values()), small


def even_cuts(prune: Prune, shape: ModelShape) -> Iterator[tuple[int, ModelShape]]:
    """Yield the number of removed units and the remaining shape after each step.

    Steps go through the layers in turn, and alternate between kinds of unit. With more than `MOST_CUTS` cuts,
    all layers take a step at once, of a thousandth of their neurons.
    """
    by_layer = prune.scope == "global" or len(prune.units) > 1
    if number_of_cuts(prune, shape) > MOST_CUTS:
        by_layer = False
        step = max(prune.multiple_of, max(layer.ffn for layer in shape.layers) // 1000)
        prune = prune.model_copy(update={"multiple_of": step})
    layers = dict(enumerate(shape.layers))
    free = [index for index in layers if index not in prune.protect]
    gone = 0
    yield gone, shape
    while True:
        before = gone
        for kind in prune.units:
            if kind == "layers":
                inside = [index for index in free if index in layers]
                if inside and len(layers) > 1:
                    # One from the middle: the count does not depend on the choice.
                    del layers[inside[len(inside) // 2]]
                    gone += 1
                    yield gone, shape.with_layers(tuple(layers.values()))
                continue
            for index in free:
                if index in layers and (step := _less(kind, layers[index], shape.layers[index], prune)):
                    layers[index], number = step
                    gone += number
                    if by_layer:
                        yield gone, shape.with_layers(tuple(layers.values()))
            yield gone, shape.with_layers(tuple(layers.values()))
        if gone == before:
            return


def number_of_cuts(prune: Prune, shape: ModelShape) -> int:
    """Return the number of steps that remove all removable units, layer by layer."""
    free = [layer for index, layer in enumerate(shape.layers) if index not in prune.protect]
    steps = {
        "layers": lambda layer: 1,
        "kv_groups": lambda layer: layer.kv_heads - 1,
        "heads": lambda layer: group_size(layer) - 1,
        "neurons": lambda layer: (layer.ffn - 1) // prune.multiple_of,
    }
    return sum(steps[kind](layer) for kind in prune.units for layer in free)


def _less(kind: str, layer: LayerShape, whole: LayerShape, prune: Prune) -> tuple[LayerShape, int] | None:
    """Return a layer after one more step and the number of units it removes; None if no step is possible."""
    size = group_size(layer)
    if kind == "kv_groups" and layer.kv_heads > 1:
        groups = layer.kv_heads - 1
        return replace(layer, kv_heads=groups, query_heads=size * groups), 1
    if kind == "heads" and size > 1:
        return replace(layer, query_heads=layer.query_heads - layer.kv_heads), layer.kv_heads
    if kind == "neurons" and layer.ffn > prune.multiple_of:
        number = layer.ffn % prune.multiple_of or prune.multiple_of
        return replace(layer, ffn=layer.ffn - number), number
    return None
