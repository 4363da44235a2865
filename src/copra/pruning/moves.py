"""The removal sequence: legal removal steps, ordered by the scores of a model.

The model is legal after every prefix of the sequence: KV groups of one layer have equally many query heads,
FFN widths are multiples of `multiple_of`, and each kept layer keeps at least one unit of each kind.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from copra.pruning.scoring import baselines
from copra.pruning.scoring.scores import score_table
from copra.schema.metrics import GREEDY, SCORED_AS
from copra.schema.pruning import Prune
from copra.schema.shape import LayerShape, ModelShape
from copra.schema.units import Unit, UnitKind, group_size, units_of
from copra.utils.errors import CopraError

if TYPE_CHECKING:
    import pandas

Ranking = dict[tuple[int, int], float]
"""Scores of one kind of unit by (layer, index)."""


@dataclass(frozen=True)
class RemovalStep:
    """Units of one kind in one layer that are removed together, and the sum of their scores."""

    kind: UnitKind
    layer: int
    indices: tuple[int, ...]
    score: float

    @property
    def units(self) -> Iterator[Unit]:
        return ((self.kind, self.layer, index) for index in self.indices)


def removal_sequence(
    settings: Prune,
    shape: ModelShape,
    scores: "pandas.DataFrame | None",
    flops_of: Callable[[ModelShape], float],
    seed: int | None,
) -> list[list[RemovalStep]]:
    """Return the removal steps in order; each entry lists the steps that are taken together.

    Angular distances give no such sequence: a longer block need not contain a shorter one, see `blocks`.

    Raises:
        CopraError: the table does not score a model of this shape, or a greedy search removed a protected
            layer.
    """
    free = [layer for layer in range(len(shape.layers)) if layer not in settings.protect]
    chains = [
        chain
        for kind in settings.units
        for chain in _chains(settings, kind, shape, _ranking(settings, kind, shape, scores, seed), free)
    ]
    if len(settings.units) > 1:
        return [[move] for move in _competing(settings, chains, shape, flops_of)]
    if settings.units == ("layers",):
        moves = sorted((move for chain in chains for move in chain), key=lambda m: (m.score, m.layer))
        return [[move] for move in moves[: len(shape.layers) - 1]]
    if settings.scope == "global":
        return [[move] for _, move in sorted(_keyed(chains), key=lambda pair: pair[0])]
    return [list(moves) for moves in zip(*chains, strict=False)]


def blocks(
    settings: Prune, shape: ModelShape, scores: "pandas.DataFrame | None"
) -> dict[int, list[RemovalStep]]:
    """Return, by length, the unprotected block with the least angular distance (arXiv 2403.17887)."""
    layers = len(shape.layers)
    expected = [(start, length) for length in range(1, layers + 1) for start in range(layers - length + 1)]
    rows = _rows(settings, "block", scores)
    distances = _whole(
        settings.metric, zip(rows["layer"], rows["length"], rows["score"], strict=True), expected
    )
    chosen: dict[int, list[RemovalStep]] = {}
    for length in range(1, layers):
        starts = [
            start
            for start in range(layers - length + 1)
            if not set(range(start, start + length)) & set(settings.protect)
        ]
        if starts:
            start = min(starts, key=lambda start: (distances[start, length], start))
            distance = distances[start, length]
            chosen[length] = [
                RemovalStep("layers", layer, (layer,), distance) for layer in range(start, start + length)
            ]
    return chosen


def _chains(
    settings: Prune, kind: UnitKind, shape: ModelShape, ranking: Ranking, free: Sequence[int]
) -> Iterator[list[RemovalStep]]:
    """Yield the removal steps of each free layer by rising score, without the ones that would empty it."""
    for layer in free:
        scored = sorted((score, index) for (each, index), score in ranking.items() if each == layer)
        ordered = [index for _, index in scored]
        if kind == "layers":
            parts = [ordered]
        elif kind == "kv_groups":
            parts = [[index] for index in ordered[:-1]]
        elif kind == "heads":
            parts = _one_a_group(ordered, shape.layers[layer])
        else:
            parts = _chunks(ordered, settings.multiple_of)
        yield [
            RemovalStep(kind, layer, tuple(sorted(part)), sum(ranking[layer, index] for index in part))
            for part in parts
            if part
        ]


def _one_a_group(ordered: Sequence[int], sizes: LayerShape) -> list[list[int]]:
    """Return the lowest query head of every group, then the second lowest, and so on, but not the last."""
    size = group_size(sizes)
    groups = [[head for head in ordered if head // size == group] for group in range(sizes.kv_heads)]
    return [list(heads) for heads in zip(*groups, strict=True)][:-1]


def _chunks(ordered: Sequence[int], multiple: int) -> list[list[int]]:
    """Return neurons in chunks whose removal leaves a width that is a multiple; without the last chunk."""
    first = len(ordered) % multiple
    starts = [0, *range(first or multiple, len(ordered) - multiple + 1, multiple)]
    return [list(ordered[start:stop]) for start, stop in itertools.pairwise(starts)]


def _keyed(
    chains: Iterable[Sequence[RemovalStep]], value: Callable[[RemovalStep], float] = lambda move: move.score
) -> Iterator[tuple[tuple[float, int, int], RemovalStep]]:
    """Yield each removal step with its sort key, which never places it before earlier steps of its chain."""
    for chain in chains:
        least = -math.inf
        for position, move in enumerate(chain):
            least = max(least, value(move))
            yield (least, move.layer, position), move


def _competing(
    settings: Prune,
    chains: Sequence[Sequence[RemovalStep]],
    shape: ModelShape,
    flops_of: Callable[[ModelShape], float],
) -> Iterator[RemovalStep]:
    """Yield removal steps of several kinds by score per FLOP saved in the unpruned model.

    With the metric `random` the order is by rank.
    """
    before, saved = flops_of(shape), {}

    def value(move: RemovalStep) -> float:
        if settings.metric == "random":
            return move.score / len(move.indices) / len(units_of(move.kind, shape))
        key = (move.kind, move.layer, len(move.indices))
        if key not in saved:
            saved[key] = before - flops_of(next(shapes_along(shape, [[move]])))
        return move.score / saved[key]

    gone: set[int] = set()
    for _, move in sorted(_keyed(chains, value), key=lambda pair: pair[0]):
        # A removed layer has no heads or neurons left to remove. The last layer is kept.
        if move.layer in gone or (move.kind == "layers" and len(gone) == len(shape.layers) - 1):
            continue
        if move.kind == "layers":
            gone.add(move.layer)
        yield move


def shapes_along(shape: ModelShape, steps: Iterable[Iterable[RemovalStep]]) -> Iterator[ModelShape]:
    """Yield the shape after each step, by counting units: much faster than building a `KeptUnits`."""
    layers: dict[int, LayerShape] = dict(enumerate(shape.layers))
    for step in steps:
        for move in step:
            if move.kind == "layers":
                del layers[move.layer]
            else:
                layers[move.layer] = _less(layers[move.layer], move, shape.layers[move.layer])
        yield shape.with_layers(tuple(layers.values()))


def _less(sizes: LayerShape, move: RemovalStep, before: LayerShape) -> LayerShape:
    """Return the sizes of a layer after one more removal step; `before` are its sizes before all steps."""
    if move.kind == "kv_groups":
        groups = sizes.kv_heads - len(move.indices)
        return replace(sizes, query_heads=group_size(sizes) * groups, kv_heads=groups)
    if move.kind == "heads":
        each = len(move.indices) // before.kv_heads
        return replace(sizes, query_heads=(group_size(sizes) - each) * sizes.kv_heads)
    return replace(sizes, ffn=sizes.ffn - len(move.indices))


def _ranking(
    settings: Prune,
    kind: UnitKind,
    shape: ModelShape,
    scores: "pandas.DataFrame | None",
    seed: int | None,
) -> Ranking:
    """Return the scores of all units of a kind; of a greedy search, those of the layers that it removed."""
    if settings.metric == "deepest":
        scores = score_table(baselines.deepest(len(shape.layers)))
    elif settings.metric == "random":
        if seed is None:
            raise CopraError("metric: 'random' needs a seed.")
        scores = score_table(baselines.random(shape, kind, seed))
    rows = _rows(settings, SCORED_AS[kind], scores)
    expected = units_of(kind, shape)
    if settings.metric in GREEDY:
        found = set(zip(rows["layer"], rows["index"], strict=True))
        expected = [unit for unit in expected if unit in found]
        if touched := [layer for layer, _ in expected if layer in settings.protect]:
            raise CopraError(
                f"protect: the greedy search removed layer {touched[0]}, which this step protects. Name "
                "it in importance.greedy_protect, so that the search leaves it alone too."
            )
    ranking = _whole(settings.metric, zip(rows["layer"], rows["index"], rows["score"], strict=True), expected)
    return normalized(ranking) if settings.normalize else ranking


def normalized(ranking: Ranking) -> Ranking:
    """Return the scores divided by the L2 norm of their layer (Michel et al. 2019; Molchanov et al. 2017)."""
    squares: dict[int, float] = {}
    for (layer, _), score in ranking.items():
        squares[layer] = squares.get(layer, 0.0) + score * score
    return {unit: score / (math.sqrt(squares[unit[0]]) or 1.0) for unit, score in ranking.items()}


def _rows(settings: Prune, unit: str, scores: "pandas.DataFrame | None") -> "pandas.DataFrame":
    if scores is None:
        raise CopraError(f"metric: {settings.metric!r} needs a table of scores, and there is none.")
    return scores[(scores["unit"] == unit) & (scores["metric"] == settings.scored_as)]


def _whole(metric: str, rows: Iterable[tuple[Any, Any, Any]], expected: Iterable[tuple[int, int]]) -> Ranking:
    """Return the scores by unit.

    Raises:
        CopraError: the scored units are not exactly the expected ones, or a score is not finite.
    """
    ranking = {(int(layer), int(index)): float(score) for layer, index, score in rows}
    strangers = set(ranking) ^ set(expected)
    undefined = {unit for unit, score in ranking.items() if not math.isfinite(score)}
    if strangers or undefined:
        layer, index = min(strangers or undefined)
        problem = (
            "is scored but not in the model, or the other way round" if strangers else "has no finite score"
        )
        raise CopraError(
            f"scores, metric {metric!r}: (layer {layer}, {index}) {problem}. The table has to come from the "
            "very model that is pruned: run its scoring again."
        )
    return ranking
