"""The plan: the units that a prune step removes, as readable JSON."""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from copra.cost.parameters import matrix_parameters
from copra.pruning.cut import KeptUnits
from copra.pruning.moves import RemovalStep, blocks, removal_sequence, shapes_along
from copra.schema.metrics import OF_BLOCKS
from copra.schema.pruning import Prune
from copra.schema.shape import ModelShape
from copra.schema.units import UNIT_KINDS, UNIT_NAMES, units_of
from copra.utils.errors import CopraError

if TYPE_CHECKING:
    import pandas


def make_plan(
    settings: Prune,
    shape: ModelShape,
    dense: ModelShape,
    scores: "pandas.DataFrame | None",
    flops_of: Callable[[ModelShape], float],
    seed: int | None,
) -> dict[str, Any]:
    """Return the plan of a prune step for a model of `shape`.

    Budgets of FLOPs or parameters are fractions of those of the shape `dense`. `flops_of` returns the FLOPs
    per answer of a shape, `scores` is a table of `copra.pruning.scoring.scores` (None for metrics that use no
    data), and `seed` draws the random order. Units with equal scores are removed in the order of their layers
    and indices.

    Raises:
        CopraError: the budget cannot be met, nothing would be removed, a protected layer does not exist, or
            the table does not score a model of this shape.
    """
    for layer in settings.protect:
        if layer >= len(shape.layers):
            raise CopraError(
                f"protect: there is no layer {layer}; the model has {len(shape.layers)} layers before this "
                "step, counted from 0."
            )
    shapes, moves_to = _removals(settings, shape, scores, flops_of, seed)
    measures = {"flops": flops_of, "parameters": matrix_parameters}

    def share(measure: str, number: int) -> float:
        return measures[measure](shapes[number]) / measures[measure](dense)

    total = sum(len(units_of(kind, shape)) for kind in settings.units)
    names = " and ".join(UNIT_NAMES[kind] for kind in settings.units)
    number = settings.budget.choose(sorted(shapes), total, share, names)
    removed = moves_to(number)
    cut = KeptUnits.whole(shape).without(shape, (unit for move in removed for unit in move.units))
    left = cut.shape(shape)
    return {
        "units": list(settings.units),
        "metric": settings.scored_as,
        "scope": settings.scope,
        "normalize": settings.normalize,
        "budget": settings.budget.model_dump(exclude_none=True),
        "budget_missed": settings.budget.missed(number, total, share),
        "warning": settings.budget.warning(number, total, share, names),
        "removed": _summary(removed),
        "kept": cut.to_json(),
        "shape_before": shape.to_json(),
        "shape_after": left.to_json(),
        "counts": {
            kind: {
                "before": len(units_of(kind, shape)),
                "after": len(units_of(kind, left)),
            }
            for kind in UNIT_KINDS
        },
        **{
            name: {
                "dense": measure(dense),
                "before": measure(shape),
                "after": measure(left),
                "ratio": measure(left) / measure(dense),
            }
            for name, measure in measures.items()
        },
    }


def _removals(
    settings: Prune,
    shape: ModelShape,
    scores: "pandas.DataFrame | None",
    flops_of: Callable[[ModelShape], float],
    seed: int | None,
) -> tuple[dict[int, ModelShape], Callable[[int], list[RemovalStep]]]:
    """Return the shape left by each legal number of removed units, and a function from number to steps."""
    if settings.metric in OF_BLOCKS:
        found = {0: [], **blocks(settings, shape, scores)}
        shapes = {number: next(shapes_along(shape, [moves])) for number, moves in found.items()}
        return shapes, found.__getitem__
    steps = removal_sequence(settings, shape, scores, flops_of, seed)
    numbers = [0, *itertools.accumulate(sum(len(move.indices) for move in step) for step in steps)]
    shapes = dict(zip(numbers, [shape, *shapes_along(shape, steps)], strict=True))
    return shapes, lambda number: list(itertools.chain(*steps[: numbers.index(number)]))


def _summary(removed: Sequence[RemovalStep]) -> list[dict[str, Any]]:
    """Return the units removed from each layer and the sum of their scores.

    Neurons are counted, not listed: `kept` in the plan lists the kept ones.
    """
    together: dict[tuple[int, int], list[RemovalStep]] = {}
    for move in removed:
        together.setdefault((move.layer, UNIT_KINDS.index(move.kind)), []).append(move)
    return [
        {
            "unit": UNIT_KINDS[kind],
            "layer": layer,
            "count": sum(len(move.indices) for move in moves),
            **(
                {}
                if UNIT_KINDS[kind] == "neurons"
                else {"indices": sorted(index for move in moves for index in move.indices)}
            ),
            "score": sum(move.score for move in moves),
        }
        for (layer, kind), moves in sorted(together.items())
    ]
