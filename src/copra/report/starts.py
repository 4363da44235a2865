"""The models that recipes' last training steps started from: their accuracy, and the healing before them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from copra.report.evaluations import Evaluation


def healing_steps(lineage: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of optimizer steps after the last pruning in a manifest's lineage; 0 without one."""
    pruned, steps = False, 0
    for done in lineage:
        if "removed" in done:
            pruned, steps = True, 0
        elif "record" in done:
            steps += done["record"]["steps"]
    return steps if pruned else 0


def start_columns(
    recipe: Mapping[str, Any],
    nodes: Sequence[str],
    evaluations: Mapping[str, Evaluation],
    healing: Mapping[str, int],
) -> dict[str, Any]:
    """Return the columns `start`, `start_accuracy` and `healing_steps` for the last nodes of a recipe.

    `recipe["start"]` has the recipe of the models that the last training step started from, and these `nodes`
    in the order of `recipe["nodes"]`; it is None if nothing was trained, and missing if starts are not asked
    for, which makes no columns. The accuracy is the mean over seeds, and NaN if the models cannot answer
    (`answers`). `healing` has the healing steps of each start.
    """
    if "start" not in recipe:
        return {}
    start = recipe["start"]
    if start is None:
        return {"start": None, "start_accuracy": math.nan, "healing_steps": 0.0}
    of_end = dict(zip(recipe["nodes"], start["nodes"], strict=True))
    chosen = [of_end[node] for node in nodes]
    accuracies = [evaluations[node].mean("correct") if start["answers"] else math.nan for node in chosen]
    return {
        "start": start["recipe"],
        "start_accuracy": math.fsum(accuracies) / len(chosen),
        "healing_steps": sum(healing[node] for node in chosen) / len(chosen),
    }
