"""How near the prunings of an experiment come to their budgets, before anything is scored (no torch)."""

from copra.cost.flops import of_typical_answer
from copra.cost.parameters import matrix_parameters
from copra.errors import CopraError
from copra.files import read_json
from copra.forecast.estimate import Estimate
from copra.forecast.shapes import MOST_CUTS, even_cuts, number_of_cuts
from copra.pruning.budget import Prune
from copra.pruning.cut import NAMES, units_of
from copra.recipes import Node


def budget_warnings(estimate: Estimate) -> list[str]:
    """A line for each pruning whose nearest legal cut is far from its budget (see `copra.pruning.budget`).

    Legal cuts are taken to go evenly through the layers, which is exact where all layers are alike. Prunings
    of a base whose sizes are not known are left out, and those with too many cuts to go through. FLOPs are
    those of a typical answer as far as it is known.

    Raises:
        CopraError: a pruning of layers that are alike would remove nothing, or its budget cannot be met; a
            line for each.
    """
    tree, steps = estimate.workflow.tree, estimate.experiment.steps
    warnings, faults, seen = [], [], set()
    for node in tree.nodes.values():
        if node.kind != "prune" or estimate.size(node.parent) is None:
            continue
        # Grids prune models of one shape hundreds of times over.
        alike = (node.step, node.task, estimate.base_of(node.name), estimate.shape(node.parent))
        if alike in seen and f"choose/{node.name}" not in estimate.made:
            continue
        seen.add(alike)
        try:
            warning = _warning(estimate, node, steps[node.step])
        except CopraError as error:
            faults.append(f"steps.{node.step}.{error}")
            continue
        if warning:
            warnings.append(f"steps.{node.step}.{warning}")
    if faults:
        raise CopraError("\n".join(dict.fromkeys(faults)))
    return list(dict.fromkeys(warnings))


def _warning(estimate: Estimate, node: Node, prune: Prune) -> str | None:
    if f"choose/{node.name}" in estimate.made:
        return read_json(estimate.results / "plans" / f"{node.name}.json")["warning"]
    shape, dense = estimate.shape(node.parent), estimate.shape(estimate.base_of(node.name))
    # Which layers differ, and in what, the scores of an earlier pruning decide.
    if len(set(shape.layers)) > 1 or len(prune.units) > 1 or number_of_cuts(prune, shape) > MOST_CUTS:
        return None
    shapes = dict(even_cuts(prune, shape))
    typical = estimate.rows(node.name).typical()
    measures = {"flops": lambda left: of_typical_answer(left, typical).total, "parameters": matrix_parameters}

    def share(measure: str, number: int) -> float:
        return measures[measure](shapes[number]) / measures[measure](dense)

    total = sum(len(units_of(kind, shape)) for kind in prune.units)
    units = " and ".join(NAMES[kind] for kind in prune.units)
    number = prune.budget.choose(sorted(shapes), total, share, units)
    return prune.budget.warning(number, total, share, units)
