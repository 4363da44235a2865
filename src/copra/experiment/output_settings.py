"""The settings of each table and figure, as far as they depend on the experiment."""

from collections.abc import Iterator
from typing import Any

from copra.experiment.recipes import RecipeEnd
from copra.experiment.workflow import Workflow

# Tables.


def accuracy(workflow: Workflow, _: str) -> dict[str, Any]:
    recipes = []
    for end in workflow.tree.recipes:
        recipes.append({**_labels(workflow, end), "nodes": list(end.nodes)})
        if workflow.experiment.evaluation.starts:
            recipes[-1]["start"] = _start(workflow, end)
    # A contrast that is the primary comparison is marked in the table of contrasts.
    primary = None if _primary_is_contrast(workflow) else workflow.experiment.primary
    return {"reference": workflow.experiment.reference, "primary": primary, "recipes": recipes}


def before_and_after(workflow: Workflow, _: str) -> dict[str, Any]:
    rows = [
        {"recipe": node.recipe, "pruning": node.step, "parent_node": node.trained, "node": node.name}
        for node in workflow.tree.pruned()
    ]
    return {"pruned": rows}


def all_tasks(workflow: Workflow, _: str) -> dict[str, Any]:
    asked = [
        {"task": task, "recipe": end.recipe, "base": end.base, "pruning": end.pruning}
        | {"method": end.method, "evaluations": evaluations}
        for task, end, evaluations in _evaluations_by_task(workflow)
    ]
    return {"reference": workflow.experiment.reference, "asked": asked}


def swept(workflow: Workflow, _: str) -> dict[str, Any]:
    ends = {node: workflow.end_of[node] for node in workflow.swept}
    return {"recipes": [{**_labels(workflow, end), "node": node} for node, end in ends.items()]}


def swapped(workflow: Workflow, _: str) -> dict[str, Any]:
    ends = [end for end in workflow.tree.recipes if end.nodes[0] in workflow.swapped]
    return {"recipes": [{"recipe": end.recipe, "nodes": list(end.nodes)} for end in ends]}


def seen_through(workflow: Workflow, _: str) -> dict[str, Any]:
    return {"nodes": workflow.seen_through}


def curves(workflow: Workflow, _: str) -> dict[str, Any]:
    return {"curves": workflow.measured}


def orders(workflow: Workflow, _: str) -> dict[str, Any]:
    return {"ordered": [_curve(workflow, curve) for curve in workflow.ordered]}


def contrasts(workflow: Workflow, _: str) -> dict[str, Any]:
    asked = workflow.experiment.contrasts
    return {
        "contrasts": [{"name": name, **contrast.canonical()} for name, contrast in asked.items()],
        "ends": workflow.contrasted,
        "primary": workflow.experiment.primary if _primary_is_contrast(workflow) else None,
    }


def conversions(workflow: Workflow, _: str) -> dict[str, Any]:
    return {"converted": list(workflow.converted.items())}


# Figures.


def nothing(workflow: Workflow, _: str) -> dict[str, Any]:
    return {}


def methods_of_recipes(workflow: Workflow, _: str) -> dict[str, Any]:
    return _colors(workflow, {end.method for end in workflow.tree.recipes})


def methods_of_swept(workflow: Workflow, _: str) -> dict[str, Any]:
    return _colors(workflow, {workflow.end_of[name].method for name in workflow.swept})


def trainings(workflow: Workflow, _: str) -> dict[str, Any]:
    return {**_colors_of_nodes(workflow, workflow.trainings), "nodes": workflow.trainings}


def stages(workflow: Workflow, _: str) -> dict[str, Any]:
    nodes = [{"stage": workflow.node(name).stage, "node": name} for name in workflow.staged]
    return {**_colors_of_nodes(workflow, workflow.staged), "nodes": nodes}


def curve(workflow: Workflow, subject: str) -> dict[str, Any]:
    return {"curve": _curve(workflow, subject)}


# Their parts.


def _labels(workflow: Workflow, end: RecipeEnd) -> dict[str, Any]:
    """Return the labels of a recipe in tables, and the accuracy of guessing if its task has one."""
    labels = {key: getattr(end, key) for key in ("recipe", "base", "pruning", "method", "order")}
    chance = workflow.experiment.tasks[workflow.node(end.nodes[0]).task].chance
    return labels | {"kind": workflow.methods[end.method]} | ({} if chance is None else {"chance": chance})


def _start(workflow: Workflow, end: RecipeEnd) -> dict[str, Any] | None:
    """Return the models that a recipe's last training step started from; None if it trains nothing."""
    if end.nodes[0] not in workflow.starts:
        return None
    starts = [workflow.starts[name] for name in end.nodes]
    return {
        "recipe": starts[0].recipe,
        "nodes": [start.name for start in starts],
        "answers": all(map(workflow.start_answers, end.nodes)),
    }


def _primary_is_contrast(workflow: Workflow) -> bool:
    return workflow.experiment.primary in workflow.experiment.contrasts


def _evaluations_by_task(workflow: Workflow) -> Iterator[tuple[str, RecipeEnd, list[str]]]:
    """Yield (task, recipe, its evaluations, one per seed): own tasks first, recipes in their order."""
    others = workflow.experiment.evaluation.tasks
    own = {end.recipe: workflow.node(end.nodes[0]).task for end in workflow.tree.recipes}
    for task in dict.fromkeys([*own.values(), *others]):
        for end in workflow.tree.recipes:
            if task == own[end.recipe]:
                yield task, end, list(end.nodes)
            elif task in others:
                yield task, end, [f"{task}/{node}" for node in end.nodes]


def _curve(workflow: Workflow, name: str) -> dict[str, Any]:
    return {"name": name, "curve": workflow.curve(name).canonical(), "nodes": workflow.curved[name]}


def _colors(workflow: Workflow, shown: set[str]) -> dict[str, Any]:
    """Return the methods that the colors of `shown` methods depend on: all of the same kinds."""
    kinds = {workflow.methods[name] for name in shown}
    return {"methods": [pair for pair in workflow.methods.items() if pair[1] in kinds]} if shown else {}


def _colors_of_nodes(workflow: Workflow, nodes: list[str]) -> dict[str, Any]:
    return _colors(workflow, {step for name in nodes if (step := workflow.node(name).step)})
