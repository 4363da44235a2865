"""Checks of pruning budgets before anything is scored: whether legal cuts can meet them."""

from copra.cost.parameters import matrix_parameters
from copra.experiment.recipes import Node, step_of
from copra.plan.estimate import Estimate
from copra.plan.sizes import plan_without_scores, removed_together, smallest_shape
from copra.schema.pruning import Prune
from copra.schema.units import UNIT_NAMES
from copra.utils.errors import CopraError
from copra.utils.files import read_json


def budget_warnings(estimate: Estimate) -> list[str]:
    """Return one line per pruning whose nearest legal cut is far from its budget (`copra.schema.pruning`).

    Prunings whose result depends on scores are left out: those of layers that an earlier pruning made unlike
    each other. Also left out are those of a base of unknown size, and of very many neurons.

    Raises:
        CopraError: a pruning would remove nothing, or its budget cannot be met. One line per problem.
    """
    warnings, problems, seen = [], [], set()
    for node in estimate.workflow.tree.nodes.values():
        if node.kind != "prune" or node.parent is None or estimate.sizes(node.parent) is None:
            continue
        is_planned = f"select/{node.name}" in estimate.cached
        # Grids repeat a pruning of the same shape hundreds of times.
        alike = (node.step, node.task, estimate.base_of(node.name), estimate.sizes(node.parent))
        if alike in seen and not is_planned:
            continue
        seen.add(alike)
        try:
            if is_planned:
                warning = read_json(estimate.results / "plans" / f"{node.name}.json")["warning"]
            else:
                warning = _warning(estimate, node, node.parent)
        except CopraError as error:
            problems.append(f"steps.{node.step}.{error}")
            continue
        if warning:
            warnings.append(f"steps.{node.step}.{warning}")
    if problems:
        raise CopraError("\n".join(dict.fromkeys(problems)))
    return list(dict.fromkeys(warnings))


def _warning(estimate: Estimate, node: Node, parent: str) -> str | None:
    """Return the warning of a pruning before it is planned.

    Raises:
        CopraError: the budget cannot be met for any scores.
    """
    prune = step_of(estimate.experiment, node, Prune)
    least, greatest = estimate.known_sizes(parent)
    shape, dense = least.shape, estimate.shape(estimate.base_of(node.name))
    flops_of = estimate.flops_of(node.name)
    if shape != greatest.shape or len(set(shape.layers)) > 1:
        return None
    if len(prune.units) == 1:
        if removed_together(prune, shape) > prune.multiple_of:
            return None
        return plan_without_scores(prune, shape, dense, flops_of)["warning"]
    # The order depends on scores, but the smallest shape does not, and no removal is larger than a layer.
    measure = flops_of if prune.budget.flops is not None else matrix_parameters
    shapes = (shape, smallest_shape(prune, shape, flops_of), shape.with_layers(shape.layers[1:]))
    now, smallest, fewer = (measure(each) / measure(dense) for each in shapes)
    prune.budget.check_reach(
        now, smallest, now - fewer, " and ".join(UNIT_NAMES[kind] for kind in prune.units)
    )
    return None
