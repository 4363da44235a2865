"""Check of the steps and curves of a config against the model configs of their bases."""

from collections.abc import Iterator, Mapping
from typing import Any

from copra.experiment.config import Experiment
from copra.experiment.recipes import Tree, step_of, without_seed
from copra.methods.looped import Looped
from copra.models.base_config import config_of
from copra.models.families import family_of
from copra.models.limits import cannot_lose, limits_of
from copra.models.shape import shape_of
from copra.schema.base import Quantize
from copra.schema.metrics import GREEDY
from copra.schema.pruning import Prune, Selection
from copra.schema.shape import ModelShape
from copra.schema.units import UNIT_NAMES, UnitKind
from copra.utils.errors import CopraError


def check_families(experiment: Experiment, tree: Tree) -> None:
    """Check the bases of a config, and the units that its steps and curves remove, by the bases' configs.

    A step that is impossible on a base is impossible after other steps too, as steps only make models
    smaller.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    bases = {_base(name): None for name in tree.nodes}
    configs = {name: config for name in bases if (config := config_of(experiment.bases[name])) is not None}
    problems = [
        f"bases.{name}.path: {problem}" for name, config in configs.items() for problem in _unknown(config)
    ]
    if not problems:
        problems += _greedy_problems(experiment, tree, configs)
        problems += _loop_problems(experiment, tree, configs)
        steps = {(node.step, _base(node.name)): None for node in tree.nodes.values() if node.step}
        for step, base in steps:
            if base in configs:
                found = _step_problems(experiment.steps[step], base, configs[base])
                problems += [f"steps.{step}.{problem}" for problem in found]
        for name, curve in experiment.curves.items():
            if (base := _base(curve.model)) in configs:
                found = _removal_problems(
                    curve, (curve.unit,), max(curve.remove), "remove", base, configs[base]
                )
                problems += [f"curves.{name}.{problem}" for problem in found]
    if problems:
        raise CopraError("\n".join(dict.fromkeys(problems)))


def _base(node: str) -> str:
    """Return the name of the base that a node or recipe begins with."""
    return without_seed(node.split("+")[0])


def _unknown(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problem of a base that copra does not support."""
    try:
        limits_of(config)
        shape_of(config)
    except CopraError as error:
        yield str(error)


def _step_problems(step: Any, base: str, config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(step, Prune):
        count = step.budget.count if len(step.units) == 1 else None
        yield from _removal_problems(step, step.units, count, "budget.count", base, config)
    elif isinstance(step, Quantize) and family_of(config["model_type"]).layout.transposed:
        yield (
            f"weights: {config['model_type']} models cannot have {step.weights} weights (theirs are in no "
            "linear layers). Leave the step out."
        )


def _greedy_problems(
    experiment: Experiment, tree: Tree, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield the problems of greedy searches whose models have too few removable layers."""
    importance = experiment.importance
    for name, key, count in _searches(experiment, tree):
        if (base := _base(name)) not in configs:
            continue
        gone = _layers_gone(experiment, tree, name)
        layers = len(shape_of(configs[base]).layers) - gone
        model = f"{base} without {gone} layers" if gone else base
        if layers < 1:  # Reported as a problem of the earlier prunings.
            continue
        if strangers := [layer for layer in importance.greedy_protect if layer >= layers]:
            yield (
                f"importance.greedy_protect: there is no layer {strangers[0]}. {model} has {layers} layers, "
                "counted from 0."
            )
            continue
        most = min(layers - len(set(importance.greedy_protect)), layers - 1)
        if importance.greedy_removals is not None:
            key, count = "importance.greedy_removals", importance.greedy_removals
        if count > most:
            protected = " with importance.greedy_protect" if importance.greedy_protect else ""
            yield f"{key}: {count} layers cannot go, as {model} can lose {most} at most{protected}. Lower it."


def _loop_problems(
    experiment: Experiment, tree: Tree, configs: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Yield the problems of loops over layers that their models do not have."""
    for node in tree.nodes.values():
        step = experiment.steps.get(node.step or "")
        if isinstance(step, Looped) and (base := _base(node.name)) in configs:
            gone = _layers_gone(experiment, tree, node.name)
            layers = len(shape_of(configs[base]).layers) - gone
            problem = step.loop.problem(layers, f"{base} without {gone} layers" if gone else base)
            if layers > 0 and problem:
                yield f"steps.{node.step}.loop.{problem}"


def _searches(experiment: Experiment, tree: Tree) -> Iterator[tuple[str, str, int]]:
    """Yield (model, key, number of layers to remove) per greedy search; 1 if the budget is not a count."""
    for node in tree.nodes.values():
        if node.kind != "prune" or node.parent is None:
            continue
        step = step_of(experiment, node, Prune)
        if step.metric in GREEDY:
            key = f"steps.{node.step}.budget{'.count' if step.budget.count else ''}"
            yield node.parent, key, step.budget.count or 1
    models = {node.recipe: node.name for node in tree.nodes.values()}
    for name, curve in experiment.curves.items():
        if set(curve.metrics) & set(GREEDY):
            yield models[curve.model], f"curves.{name}.remove", max(curve.remove)


def _layers_gone(experiment: Experiment, tree: Tree, name: str) -> int:
    """Return the number of layers that the prunings on a node's path remove by count, a lower bound."""
    steps = [step_of(experiment, node, Prune) for node in tree.path_to(name) if node.kind == "prune"]
    return sum(step.budget.count or 0 for step in steps if step.units == ("layers",))


def _removal_problems(
    selection: Selection,
    units: tuple[UnitKind, ...],
    count: int | None,
    key: str,
    base: str,
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Yield the problems of removing units from a model of this config; `key` is the key of their count."""
    impossible = [problem for unit in units if (problem := cannot_lose(config, unit))]
    yield from (f"unit: {problem}" for problem in impossible)
    shape = shape_of(config)
    strangers = [layer for layer in selection.protect if layer >= len(shape.layers)]
    if strangers:
        yield (
            f"protect: there is no layer {strangers[0]}. {base} has {len(shape.layers)} layers, counted from "
            "0."
        )
    if impossible or strangers:
        return
    if "neurons" in units and not _most(selection, "neurons", shape):
        yield (
            f"multiple_of: {selection.multiple_of} leaves no narrower FFN, as those of {base} have "
            f"{max(layer.ffn for layer in shape.layers)} neurons. Lower it."
        )
    elif count is not None and count > (most := _most(selection, units[0], shape)):
        yield f"{key}: {count} {UNIT_NAMES[units[0]]} cannot go, as {base} can lose {most} at most. Lower it."


def _most(selection: Selection, unit: UnitKind, shape: ModelShape) -> int:
    """Return the maximum number of units of a kind that can be removed from a model of this shape."""
    free = [layer for index, layer in enumerate(shape.layers) if index not in selection.protect]
    if unit == "layers":
        return min(len(free), len(shape.layers) - 1)
    if unit == "kv_groups":
        return sum(layer.kv_heads - 1 for layer in free)
    if unit == "heads":
        return sum(layer.query_heads - layer.kv_heads for layer in free)
    return sum(max(0, layer.ffn - selection.multiple_of) for layer in free)
