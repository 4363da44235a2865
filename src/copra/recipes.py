"""Config -> recipe tree: which model nodes there are and what each one needs (pure, no torch).

A node is what a prefix of a recipe yields. Its name is its path: `llama@0+cot+layers-1+coconut.2` is the
base `llama` drawn with seed 0, trained by step `cot`, pruned by `layers-1`, after stage 2 of `coconut`. The
last stage of a step bears the step's plain name, so a recipe's name is the name of the node that it ends
at, without the seed. Recipes that begin alike share nodes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from copra.config import Experiment, Product, Recipe
from copra.errors import CopraError
from copra.faults import hint
from copra.importance.metrics import NEEDS_ANSWERS
from copra.models.settings import Quantise
from copra.pruning.budget import Prune
from copra.reasoning import METHODS, Method
from copra.reasoning.distil import stage_of
from copra.reasoning.few_shot import FewShot
from copra.reasoning.icot_kd import IcotKd
from copra.tasks import TASKS

Kind = Literal["base", "train", "prune", "prompt", "quantise"]
WRITING = ("cot", "scratchpad")
"""Methods whose models write their chain of thought, from which others can learn."""


@dataclass(frozen=True)
class Node:
    """A model of the tree.

    `settings` is what the node's own rule depends on, resolved. `method` is how it answers: the kind of
    the last training, or None. `trained` names the node itself if it was trained or is a base, and
    otherwise the nearest ancestor before the prunings that made it. `teacher` names the node that it learns
    from, `latents` is the number of latents with which it answers, `loops` says whether those are hidden
    states, and `answers` whether it can answer at all.
    """

    name: str
    kind: Kind
    parent: str | None
    step: str | None
    stage: int | None
    seed: int | None
    task: str
    method: str | None
    trained: str
    settings: dict[str, Any]
    teacher: str | None = None
    latents: int = 0
    loops: bool = False
    answers: bool = True

    @property
    def recipe(self) -> str:
        """The name without seeds."""
        return without_seed(self.name)


@dataclass(frozen=True)
class RecipeEnd:
    """A recipe and the nodes that it ends at, one a seed; the words that tables use for it."""

    recipe: str
    base: str
    pruning: str
    method: str
    order: str
    nodes: tuple[str, ...]


@dataclass
class Tree:
    """All nodes by name, parents before children, and the recipes in the order of the config."""

    nodes: dict[str, Node] = field(default_factory=dict)
    recipes: list[RecipeEnd] = field(default_factory=list)

    def pruned(self) -> list[Node]:
        """Nodes made by pruning a model that can answer."""
        return [node for node in self.nodes.values() if node.kind == "prune" and node.method]

    def path_to(self, name: str) -> list[Node]:
        """The node and its ancestors, base first."""
        node = self.nodes[name]
        return [*(self.path_to(node.parent) if node.parent else []), node]


def without_seed(name: str) -> str:
    """The recipe's name behind a node's name."""
    return re.sub(r"@-?\d+", "", name)


def build_tree(experiment: Experiment) -> Tree:
    """The recipe tree of an experiment.

    Raises:
        CopraError: an unknown step or base, a recipe given twice, a recipe that comes back to a step, or a
            step that cannot follow what is before it. All faults at once, a line each.
    """
    tree, faults = Tree(), []
    for number, (base, steps) in enumerate(_listed(experiment)):
        where = f"recipes: {'+'.join([base, *steps])}"
        found = list(_faults(experiment, base, steps))
        if any(end.recipe == "+".join([base, *steps]) for end in tree.recipes):
            found.append(f"given twice (the second time as recipe number {number + 1})")
        faults += [f"{where}: {fault}" for fault in found]
        if not found:
            nodes = tuple(
                dict.fromkeys(_grow(tree, experiment, base, steps, seed) for seed in experiment.seeds)
            )
            tree.recipes.append(_end(experiment, base, steps, nodes))
    names = [end.recipe for end in tree.recipes]
    if not faults and experiment.reference is not None and experiment.reference not in names:
        faults.append(
            f"reference: {experiment.reference!r} is none of the recipes{hint(experiment.reference, names)}"
        )
    if faults:
        raise CopraError("\n".join(faults))
    return tree


def _listed(experiment: Experiment) -> Iterator[tuple[str, list[str]]]:
    """The recipes one by one as (base, steps), products multiplied out."""
    for entry in experiment.recipes:
        if isinstance(entry, list):
            yield experiment.base, entry
        elif isinstance(entry, Recipe):
            yield entry.base or experiment.base, entry.steps
        elif isinstance(entry, Product):
            for pruning in entry.prunings:
                for method in entry.methods:
                    parts = [entry.start, pruning, method]
                    steps = [step for part in parts for step in ([part] if isinstance(part, str) else part)]
                    yield entry.base or experiment.base, steps


def _faults(
    experiment: Experiment, base: str, steps: list[str], pupils: tuple[str, ...] = ()
) -> Iterator[str]:
    """What is wrong with one recipe, or with one whose model teaches the steps `pupils`."""
    if base not in experiment.bases:
        yield f"{base!r} is not in bases{hint(base, experiment.bases)}"
        return
    if unknown := [step for step in steps if step not in experiment.steps]:
        for step in dict.fromkeys(unknown):
            yield f"{step!r} is not in steps{hint(step, experiment.steps)}"
        return
    for step in sorted({step for step in steps if steps.count(step) > 1}):
        yield f"comes back to step {step!r}; to do the same again, declare it under a second name"
    scratch = experiment.bases[base].from_scratch
    # How the model answers, and what it was last trained for: a prompt changes the first alone.
    task, method, learned = experiment.task, None, None
    quantised = None
    for name in steps:
        step = experiment.steps[name]
        if quantised is not None:
            yield f"{name!r} comes after {quantised!r}, whose weights are final: put {quantised!r} last"
        if isinstance(step, Method):
            if learned is not None and (step.task or experiment.task) != task:
                yield (
                    f"{name!r} trains on task {step.task or experiment.task!r} after a training on {task!r}; "
                    "a recipe stays with one task"
                )
            if isinstance(step, IcotKd):
                yield from _teacher_faults(experiment, name, step, learned, (*pupils, name))
            elif step.distil is not None:
                before = steps[: steps.index(name)]
                yield from _distil_faults(experiment, name, step, [base, *before], (*pupils, name))
            task, method, learned = step.task or experiment.task, step.kind, step.kind
        elif isinstance(step, FewShot):
            if scratch and method is None:
                yield f"{name!r} prompts a base from scratch, which knows nothing: put a training before it"
            if step.answer == "flexible" and TASKS[experiment.tasks[task].kind].answers != "number":
                yield f"{name!r} takes the last number for the answer; {task!r} needs answer: strict"
            method = step.kind
        elif isinstance(step, Prune):
            if learned is not None and not METHODS[learned].prunable:
                yield f"{name!r} prunes after {learned}, whose parts belong to single layers: prune before it"
            if scratch and method is None and step.scoring:
                yield f"{name!r} scores a base from scratch before any training: put a training before it"
            yield from _scoring_faults(experiment, name, step, method, learned)
        elif isinstance(step, Quantise):
            if scratch and scratch.architecture == "gpt2":
                yield f"{name!r} quantises linear layers, which GPT-2 does not have: leave it out"
            if pupils:
                yield f"{name!r} quantises, and a model of whole numbers is no teacher: leave it out"
            quantised = name
    if method is None and (scratch or not pupils):
        yield "never trains, so it has no way to answer; add a training step"


def _scoring_faults(
    experiment: Experiment, name: str, step: Prune, method: str | None, learned: str | None
) -> Iterator[str]:
    """What a pruning cannot be scored on, of a model that answers by `method` and was last trained for
    `learned` (None: not yet)."""
    if step.scoring is None:
        return
    if method is None and step.metric in NEEDS_ANSWERS:
        yield f"{name!r} scores by accuracy, but the model cannot answer yet: put a training before it"
    objective = experiment.importance.objective_of(step.objective)
    if objective == "text" and experiment.importance.text is None:
        yield f"{name!r} scores on a text, and there is none: name it under importance.text"
    if objective == "latent" and learned is None:
        yield f"{name!r} scores on the model's own latents before any training: take objective cot or answer"


def _teacher_faults(
    experiment: Experiment, name: str, step: IcotKd, learned: str | None, pupils: tuple[str, ...]
) -> Iterator[str]:
    """What is wrong with the teacher of a step, before which the model was last trained for `learned`."""
    if step.teacher is None:
        if learned not in WRITING:
            yield (
                f"{name!r} learns from the model before it, which has to write its chain of thought: put a "
                f"training of kind {' or '.join(WRITING)} before it, or name a teacher"
            )
        return
    faults = _named_faults(experiment, name, step.teacher, pupils)
    yield from faults
    if not faults:
        teacher = _last_training(experiment, step.teacher.split("+")[1:])
        if teacher is None or teacher.kind not in WRITING:
            yield f"teacher of {name!r}: {step.teacher!r} does not write its chain of thought"


def _distil_faults(
    experiment: Experiment, name: str, step: Method, before: list[str], pupils: tuple[str, ...]
) -> Iterator[str]:
    """What is wrong with the teacher whose predictions a step learns, after a base and steps `before`."""
    named = step.distil.teacher
    faults = [] if named is None else _named_faults(experiment, name, named, pupils)
    if faults:
        yield from faults
        return
    base, *steps = before if named is None else named.split("+")
    teacher = _last_training(experiment, steps)
    if named is None:
        changes = [each for each in map(experiment.steps.get, steps) if not isinstance(each, FewShot)]
        if teacher is None and experiment.bases[base].from_scratch:
            yield f"{name!r} learns from a base from scratch, which knows nothing: name a teacher"
        elif not step.distil.task_weight and not (changes and isinstance(changes[-1], Prune)):
            yield (
                f"{name!r} starts from its own teacher, so there is nothing to learn: put a pruning before "
                "it, name a teacher, or raise distil.task_weight"
            )
    own, theirs = (list(each.stages().values())[-1] if each else None for each in (step, teacher))
    fed = theirs.latent_input if theirs is not None and theirs.loops else None
    if own.loops and own.latent_input != fed and (fed is not None or own.latent_input == "projected"):
        yield (
            f"{name!r} has latents with latent_input: {own.latent_input}, and its teacher "
            f"{f'with {fed}' if fed else 'has none'}: name a teacher that was trained as {name!r} trains"
        )


def _named_faults(experiment: Experiment, name: str, teacher: str, pupils: tuple[str, ...]) -> list[str]:
    """What is wrong with the recipe of the teacher that the step `name` names."""
    base, *steps = teacher.split("+")
    if own := [pupil for pupil in pupils if pupil in steps]:
        return [f"{own[0]!r} has itself for a teacher: {teacher!r}"]
    return [f"teacher of {name!r}: {fault}" for fault in _faults(experiment, base, steps, pupils)]


def _last_training(experiment: Experiment, steps: list[str]) -> Method | None:
    """The last training of these steps."""
    found = [step for step in map(experiment.steps.get, steps) if isinstance(step, Method)]
    return found[-1] if found else None


def _grow(tree: Tree, experiment: Experiment, base: str, steps: list[str], seed: int) -> str:
    """Add the nodes of one recipe and seed that are not there yet; returns the name of the last."""
    node = _add(tree, _base_node(experiment, base, seed))
    for name in steps:
        step = experiment.steps[name]
        if isinstance(step, Method):
            teacher = _teacher(tree, experiment, step, node, seed)
            numbers = list(step.stages())
            for number in numbers:
                label = name if number == numbers[-1] else f"{name}.{number}"
                node = _add(tree, _train_node(experiment, node, step, name, label, number, seed, teacher))
        elif isinstance(step, FewShot):
            node = _add(tree, _prompt_node(node, name, step))
        elif isinstance(step, Quantise):
            node = _add(tree, _quantise_node(node, name, step))
        else:
            node = _add(tree, _prune_node(node, name, step, seed))
    return node.name


def _teacher(tree: Tree, experiment: Experiment, step: Method, before: Node, seed: int) -> str:
    """The node that teaches a training after the node `before`, where the training has a teacher at all."""
    named = step.teacher if isinstance(step, IcotKd) else step.distil and step.distil.teacher
    if named is not None:
        base, *steps = named.split("+")
        return _grow(tree, experiment, base, steps, seed)
    # States are read of a model of the same shape, predictions of the one before the prunings.
    while step.distil is not None and before.kind in ("prune", "prompt"):
        before = tree.nodes[before.parent]
    return before.name


def _add(tree: Tree, node: Node) -> Node:
    return tree.nodes.setdefault(node.name, node)


def _base_node(experiment: Experiment, base: str, seed: int) -> Node:
    spec = experiment.bases[base]
    entering = seed if spec.from_scratch else None
    name = _name(base, entering)
    settings = {"base": spec.canonical(), "seed": entering}
    return Node(name, "base", None, None, None, entering, experiment.task, None, name, settings)


def _train_node(
    experiment: Experiment,
    parent: Node,
    method: Method,
    step: str,
    label: str,
    number: int,
    seed: int,
    teacher: str,
) -> Node:
    before = parent.name.rsplit("+", 1)[0] if parent.step == step else parent.name
    name = f"{before}+{_name(label, seed if _first_seed(parent, step) else None)}"
    stages = method.stages()
    stage = stage_of(method, number)
    settings = {
        "method": method.kind,
        "stage": stage.canonical(),
        "training": method.training_of(number).canonical(),
        "precision": experiment.compute.precision,
        "seed": seed,
    }
    return Node(
        name,
        "train",
        parent.name,
        step,
        number if len(stages) > 1 else None,
        seed,
        method.task or experiment.task,
        method.kind,
        name,
        settings,
        teacher=teacher if stage.needs_teacher else None,
        latents=stage.layouts[-1].latents,
        loops=stage.loops,
        answers=stage.answers,
    )


def _prompt_node(parent: Node, step: str, prompt: FewShot) -> Node:
    name = f"{parent.name}+{step}"
    settings = {"prompt": prompt.canonical()}
    return Node(
        name, "prompt", parent.name, step, None, parent.seed, parent.task, prompt.kind, name, settings
    )


def _first_seed(parent: Node, step: str) -> bool:
    """Whether the seed enters with this step: each of its stages then bears it."""
    if parent.step == step:
        return "@" in parent.name.rsplit("+", 1)[1]
    return parent.seed is None


def _prune_node(parent: Node, step: str, prune: Prune, seed: int) -> Node:
    entering = seed if prune.metric == "random" and parent.seed is None else None
    own = seed if prune.metric == "random" else None
    settings = {"prune": prune.canonical(), "seed": own}
    return Node(
        f"{parent.name}+{_name(step, entering)}",
        "prune",
        parent.name,
        step,
        None,
        parent.seed if entering is None else entering,
        parent.task,
        parent.method,
        parent.trained,
        settings,
        latents=parent.latents,
        loops=parent.loops,
    )


def _quantise_node(parent: Node, step: str, quantise: Quantise) -> Node:
    name = f"{parent.name}+{step}"
    settings = {"quantise": quantise.canonical()}
    return replace(
        parent,
        name=name,
        kind="quantise",
        parent=parent.name,
        step=step,
        stage=None,
        settings=settings,
        teacher=None,
    )


def _name(label: str, seed: int | None) -> str:
    return label if seed is None else f"{label}@{seed}"


def _end(experiment: Experiment, base: str, steps: list[str], nodes: tuple[str, ...]) -> RecipeEnd:
    prunings = [step for step in steps if isinstance(experiment.steps[step], Prune | Quantise)]
    trainings = [step for step in steps if step not in prunings]
    return RecipeEnd(
        recipe="+".join([base, *steps]),
        base=base,
        pruning=" + ".join(prunings) or "dense",
        method=trainings[-1],
        order=" > ".join([base, *steps]),
        nodes=nodes,
    )
