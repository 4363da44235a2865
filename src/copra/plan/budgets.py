"""Checks of pruning budgets before anything is scored: whether legal cuts can meet them."""

from copra.cost.flops import of_typical_answer
from copra.cost.parameters import matrix_parameters
from copra.experiment.recipes import Node
from copra.plan.estimate import Estimate
from copra.plan.shapes import MOST_CUTS, even_cuts, number_of_cuts
from copra.schema.pruning import Prune
from copra.schema.shape import ModelShape
from copra.schema.units import UNIT_NAMES, units_of
from copra.utils.errors import CopraError
from copra.utils.files import read_json


def budget_warnings(estimate: Estimate) -> list[str]:
    """Return one line per pruning whose nearest legal cut is far from its budget (`copra.schema.pruning`).

    Cuts are assumed to be even over the layers, which is exact if all layers are alike. Prunings of a base of
    unknown size are left out, and those with more than `MOST_CUTS` cuts. FLOPs are those of a typical answer,
    estimated if it is not recorded.

    Raises:
        CopraError: a pruning of like layers would remove nothing, or its budget cannot be met; or a budget is
            out of reach for any scores. One line per problem.
    """
    tree, steps = estimate.workflow.tree, estimate.experiment.steps
    warnings, problems, seen = [], [], set()
    for node in tree.nodes.values():
        if node.kind != "prune" or estimate.size(node.parent) is None:
            continue
        # Grids repeat a pruning of the same shape hundreds of times.
        alike = (node.step, node.task, estimate.base_of(node.name), estimate.shape(node.parent))
        if alike in seen and f"choose/{node.name}" not in estimate.made:
            continue
        seen.add(alike)
        try:
            warning = _warning(estimate, node, steps[node.step])
        except CopraError as error:
            problems.append(f"steps.{node.step}.{error}")
            continue
        if warning:
            warnings.append(f"steps.{node.step}.{warning}")
    if problems:
        raise CopraError("\n".join(dict.fromkeys(problems)))
    return list(dict.fromkeys(warnings))


def _warning(estimate: Estimate, node: Node, prune: Prune) -> str | None:
    if f"choose/{node.name}" in estimate.made:
        return read_json(estimate.results / "plans" / f"{node.name}.json")["warning"]
    shape, dense = estimate.shape(node.parent), estimate.shape(estimate.base_of(node.name))
    units = " and ".join(UNIT_NAMES[kind] for kind in prune.units)
    if not _is_certain(estimate, node):
        _check_count(estimate, node, prune, units)
        return None
    if number_of_cuts(prune, shape) > MOST_CUTS:
        return None
    shapes = dict(even_cuts(prune, shape))
    typical = estimate.rows(node.name).typical()
    measures = {"flops": lambda left: of_typical_answer(left, typical).total, "parameters": matrix_parameters}

    def share_of(measure: str, left: ModelShape) -> float:
        return measures[measure](left) / measures[measure](dense)

    if len(prune.units) > 1:
        # The order depends on scores, but the smallest shape does not, and no step removes more than a layer.
        measure = "flops" if prune.budget.flops is not None else "parameters"
        now, least = share_of(measure, shape), share_of(measure, shapes[max(shapes)])
        layer = now - share_of(measure, shape.with_layers(shape.layers[1:]))
        prune.budget.check_reach(now, least, layer, units)
        return None

    def share(measure: str, number: int) -> float:
        return share_of(measure, shapes[number])

    total = sum(len(units_of(kind, shape)) for kind in prune.units)
    number = prune.budget.choose(sorted(shapes), total, share, units)
    return prune.budget.warning(number, total, share, units)


def _prunings(estimate: Estimate, node: Node) -> list[Node]:
    """Return the prunings before a node, first one first."""
    return [each for each in estimate.workflow.tree.path_to(node.parent) if each.kind == "prune"]


def _is_certain(estimate: Estimate, node: Node) -> bool:
    """True if all layers are alike before a pruning, for any scores of earlier prunings."""
    for each in [*_prunings(estimate, node), node]:
        prune = estimate.experiment.steps[each.step]
        if len(set(estimate.shape(each.parent).layers)) > 1:
            return False
        by_scores = len(prune.units) > 1 or (prune.scope == "global" and prune.units != ("layers",))
        if each is not node and by_scores:
            return False
    return True


def _check_count(estimate: Estimate, node: Node, prune: Prune, units: str) -> None:
    """Check the count of a pruning of unlike layers, if earlier prunings determine the number of units.

    Raises:
        CopraError: the count is larger than the number of units that can be removed.
    """
    steps = estimate.experiment.steps
    shape, unit = estimate.shape(node.parent), prune.units[0]
    least = {
        "layers": 1,
        "kv_groups": len(shape.layers),
        "heads": sum(layer.kv_heads for layer in shape.layers),
    }
    if prune.budget.count is None or unit not in least:
        return
    for before in _prunings(estimate, node):
        if steps[before.step].budget.count is None:
            return
        # If layers differ, the number of units removed with them depends on which layers were removed.
        is_of_layers = steps[before.step].units == ("layers",)
        if unit != "layers" and is_of_layers and not _is_certain(estimate, before):
            return
    total = len(units_of(unit, shape))
    most = total - least[unit]
    if prune.budget.count > most:
        raise CopraError(
            f"budget.count: {prune.budget.count} of the {total} {units} cannot be removed; {most} can at "
            "most. Lower it."
        )
