"""The plan: which units a prune step removes, as JSON that a person can read (no torch)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from copra.errors import CopraError
from copra.importance import baselines
from copra.importance.scores import score_table
from copra.models.shape import ModelShape
from copra.pruning.budget import Prune

if TYPE_CHECKING:
    import pandas

Unit = tuple[int, int]
"""A layer, and the KV group in it or, where the unit is a layer, the layer again."""

NAMES = {"layers": "layers", "kv_groups": "KV groups"}
SCORED_AS = {"layers": "layer", "kv_groups": "kv_group"}


def make_plan(
    settings: Prune,
    shape: ModelShape,
    dense: ModelShape,
    scores: "pandas.DataFrame | None",
    flops_of: Callable[[ModelShape], float],
    seed: int | None,
) -> dict[str, Any]:
    """What the step removes from a model of `shape`.

    `dense` is the shape whose FLOPs a FLOPs budget is a part of, `flops_of` gives the FLOPs of one answer,
    `scores` is a table of `copra.importance.scores` (None for metrics that look at no data), `seed` draws
    the random order. Units with equal scores go in the order of their layers and indices.

    Raises:
        CopraError: the budget cannot be met, a protected layer does not exist, or the table does not score
            a model of this shape.
    """
    for layer in settings.protect:
        if layer >= len(shape.layers):
            raise CopraError(
                f"protect: there is no layer {layer}; the model has {len(shape.layers)} layers before this "
                "step, counted from 0."
            )
    if scores is None:
        scores = _scores_without_data(settings, shape, seed)
    scored = _candidates(settings, shape, scores)
    shapes = {
        number: pruned_shape(shape, settings.unit, _kept(settings.unit, shape, scored[number]))
        for number in scored
    }
    costs = {number: flops_of(shape) for number, shape in shapes.items()}
    dense_cost = flops_of(dense)
    total = len(_units(settings.unit, shape))
    number = settings.budget.choose(
        sorted(scored), total, lambda number: costs[number] / dense_cost, NAMES[settings.unit]
    )
    removed = scored[number]
    return {
        "unit": settings.unit,
        "metric": settings.metric,
        "scope": settings.scope,
        "budget": settings.budget.model_dump(exclude_none=True),
        "removed": [
            {"layer": layer, "index": index, "score": removed[layer, index]}
            for layer, index in sorted(removed)
        ],
        "kept": {settings.unit: _kept(settings.unit, shape, removed)},
        "shape_before": shape.to_json(),
        "shape_after": shapes[number].to_json(),
        "units": {"before": total, "removed": number, "after": total - number},
        "flops": {
            "dense": dense_cost,
            "before": flops_of(shape),
            "after": costs[number],
            "ratio": costs[number] / dense_cost,
            "target": settings.budget.flops,
        },
    }


def pruned_shape(shape: ModelShape, unit: str, kept: Sequence[Any]) -> ModelShape:
    """The shape that is left of `shape` when only `kept` stays.

    `kept` lists the layers that stay, or for `unit` "kv_groups" the groups that stay in each layer.

    Raises:
        CopraError: KV groups of a GPT-2, whose head count is tied to its width.
    """
    if unit == "layers":
        return shape.with_layers(tuple(shape.layers[layer] for layer in kept))
    if shape.family == "gpt2":
        raise CopraError(
            "unit: heads cannot be removed from GPT-2, whose number of heads is tied to its width. Prune "
            "'layers' instead, or take a Llama-like model."
        )
    return shape.with_layers(
        tuple(
            replace(
                layer,
                query_heads=layer.query_heads // layer.kv_heads * len(groups),
                kv_heads=len(groups),
            )
            for layer, groups in zip(shape.layers, kept, strict=True)
        )
    )


def _scores_without_data(settings: Prune, shape: ModelShape, seed: int | None) -> "pandas.DataFrame":
    if settings.metric == "deepest":
        return score_table(baselines.deepest(len(shape.layers)))
    if settings.metric == "random":
        if seed is None:
            raise CopraError("metric: 'random' needs a seed.")
        return score_table(baselines.random(shape, SCORED_AS[settings.unit], seed))
    raise CopraError(f"metric: {settings.metric!r} needs a table of scores, and there is none.")


def _candidates(
    settings: Prune, shape: ModelShape, scores: "pandas.DataFrame"
) -> dict[int, dict[Unit, float]]:
    """For each number of units that may legally be removed, the units to remove and their scores."""
    free = [layer for layer in range(len(shape.layers)) if layer not in settings.protect]
    if settings.metric == "angular":
        return _least_blocks(_blocks(scores, settings.metric, len(shape.layers)), free, len(shape.layers))
    units = _units(settings.unit, shape)
    ranking = _ranking(scores, settings, units)
    ordered = sorted((unit for unit in units if unit[0] in free), key=lambda unit: (ranking[unit], unit))
    if settings.unit == "layers":
        chosen = _lowest(ordered, limit=len(shape.layers) - 1)
    elif settings.scope == "global":
        chosen = _lowest(_leaving_one(ordered, shape), limit=len(ordered))
    else:
        chosen = _same_in_each(ordered, free, shape)
    return {number: {unit: ranking[unit] for unit in removed} for number, removed in chosen.items()}


def _lowest(ordered: Sequence[Unit], limit: int) -> dict[int, Sequence[Unit]]:
    return {number: ordered[:number] for number in range(min(len(ordered), limit) + 1)}


def _leaving_one(ordered: Iterable[Unit], shape: ModelShape) -> list[Unit]:
    """The units in the same order, without the last of each layer."""
    left = [layer.kv_heads for layer in shape.layers]
    removable = []
    for layer, group in ordered:
        if left[layer] > 1:
            left[layer] -= 1
            removable.append((layer, group))
    return removable


def _same_in_each(ordered: Sequence[Unit], free: Sequence[int], shape: ModelShape) -> dict[int, list[Unit]]:
    most = min((shape.layers[layer].kv_heads - 1 for layer in free), default=0)
    in_layer = {layer: [unit for unit in ordered if unit[0] == layer] for layer in free}
    return {
        each * len(free): [unit for layer in free for unit in in_layer[layer][:each]]
        for each in range(most + 1)
    }


def _least_blocks(
    distances: Mapping[Unit, float], free: Sequence[int], layers: int
) -> dict[int, dict[Unit, float]]:
    """For each length the block of least angular distance that touches free layers only."""
    chosen: dict[int, dict[Unit, float]] = {0: {}}
    for length in range(1, layers):
        starts = [
            start
            for start in range(layers - length + 1)
            if all(layer in free for layer in range(start, start + length))
        ]
        if starts:
            start = min(starts, key=lambda start: (distances[start, length], start))
            block = range(start, start + length)
            chosen[length] = {(layer, layer): distances[start, length] for layer in block}
    return chosen


def _ranking(scores: "pandas.DataFrame", settings: Prune, units: Iterable[Unit]) -> dict[Unit, float]:
    rows = scores[(scores["unit"] == SCORED_AS[settings.unit]) & (scores["metric"] == settings.metric)]
    return _whole(settings.metric, zip(rows["layer"], rows["index"], rows["score"], strict=True), units)


def _blocks(scores: "pandas.DataFrame", metric: str, layers: int) -> dict[tuple[int, int], float]:
    """Distances by start and length."""
    rows = scores[(scores["unit"] == "block") & (scores["metric"] == metric)]
    expected = [(start, length) for length in range(1, layers + 1) for start in range(layers - length + 1)]
    return _whole(metric, zip(rows["layer"], rows["length"], rows["score"], strict=True), expected)


def _whole(
    metric: str, rows: Iterable[tuple[Any, Any, Any]], expected: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The scores by unit, after a check that every unit has a finite one, and nothing else does."""
    ranking = {(int(layer), int(index)): float(score) for layer, index, score in rows}
    strangers = set(ranking) ^ set(expected)
    undefined = {unit for unit, score in ranking.items() if not math.isfinite(score)}
    if strangers or undefined:
        layer, index = min(strangers or undefined)
        fault = (
            "is scored but not in the model, or the other way round" if strangers else "has no finite score"
        )
        raise CopraError(
            f"scores, metric {metric!r}: (layer {layer}, {index}) {fault}. The table has to come from the "
            "very model that is pruned: run its scoring again."
        )
    return ranking


def _units(unit: str, shape: ModelShape) -> list[Unit]:
    if unit == "layers":
        return [(layer, layer) for layer in range(len(shape.layers))]
    return [(layer, group) for layer, sizes in enumerate(shape.layers) for group in range(sizes.kv_heads)]


def _kept(unit: str, shape: ModelShape, removed: Mapping[Unit, float]) -> list[Any]:
    if unit == "layers":
        return [layer for layer in range(len(shape.layers)) if (layer, layer) not in removed]
    return [
        [group for group in range(sizes.kv_heads) if (layer, group) not in removed]
        for layer, sizes in enumerate(shape.layers)
    ]
