"""Config -> recipe tree: all model nodes, with the settings and ancestors of each.

A node is the model that a prefix of a recipe yields. Its name is its path: `llama@0+cot+drop-1+coconut.2`
is the base `llama` initialized with seed 0, trained by step `cot`, pruned by `drop-1`, after stage 2 of
`coconut`. The last stage of a step has the step's plain name, so a recipe's name is the name of its last node
without the seed. Recipes with a common prefix share its nodes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from copra.experiment.config import Experiment, Product, Recipe
from copra.experiment.recipe_problems import Known, named_teacher, recipe_problems
from copra.methods import Method
from copra.methods.few_shot import FewShot
from copra.methods.method import Stage
from copra.schema.base import Quantize
from copra.schema.names import MOST_BYTES
from copra.schema.pruning import Prune
from copra.utils.errors import CopraError
from copra.utils.files import file_sha256
from copra.utils.problems import cut, hint, shown

NodeKind = Literal["base", "train", "prune", "prompt", "quantize"]
Step = TypeVar("Step", Method, FewShot, Prune, Quantize)
SEED = re.compile(r"@-?\d+")


@dataclass(frozen=True)
class Node:
    """A model of the tree.

    `settings` are the resolved settings that the node's own rule depends on. `method` is the method by which
    it answers, or None. `trained` is the name of the node itself if it was trained or is a base, otherwise of
    its nearest ancestor before the prunings. `teacher` is the name of the node that it learns from,
    `pretrained` that of the node whose weights initialize one of its extra modules. `latents` is the number
    of latents with which it answers; `has_recurrent_latents` is true if these are hidden states; `answers` is
    true if it can answer; `needs_accuracy` is true if its training counts right answers in validations.
    """

    name: str
    kind: NodeKind
    parent: str | None
    step: str | None
    stage: int | None
    seed: int | None
    task: str
    method: str | None
    trained: str
    settings: dict[str, Any]
    teacher: str | None = None
    pretrained: str | None = None
    latents: int = 0
    has_recurrent_latents: bool = False
    answers: bool = True
    needs_accuracy: bool = False

    @property
    def recipe(self) -> str:
        """The name of the node without seeds."""
        return without_seed(self.name)


def step_of(experiment: Experiment, node: Node, kind: type[Step]) -> Step:
    """Return the step that yields a node, which must be of this kind."""
    step = experiment.steps[node.step or ""]
    assert isinstance(step, kind)
    return step


@dataclass(frozen=True)
class RecipeEnd:
    """A recipe, its last nodes (one per seed), and its labels in tables."""

    recipe: str
    base: str
    pruning: str
    method: str
    order: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """A stage of a training step, shared by all nodes that it yields.

    `label` is appended to a node's name. `number` is None if the step has only one stage.
    """

    label: str
    number: int | None
    stage: Stage
    needs_accuracy: bool
    settings: dict[str, Any]


@dataclass
class Tree:
    """All nodes by name, parents before children, and the recipes in the order of the config.

    `trainings` are the stages of each training step, computed once for all recipes with that step.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    recipes: list[RecipeEnd] = field(default_factory=list)
    trainings: dict[str, list[Training]] = field(default_factory=dict)
    grown: dict[tuple[str | int, ...], str] = field(default_factory=dict, compare=False)
    """The last node of each recipe by base, steps and seed; a cache, as teachers have teachers."""

    def pruned(self) -> list[Node]:
        """Return the nodes made by pruning a model that can answer."""
        return [node for node in self.nodes.values() if node.kind == "prune" and node.method]

    def path_to(self, name: str) -> list[Node]:
        """Return the node and its ancestors, base first."""
        node = self.nodes[name]
        return [*(self.path_to(node.parent) if node.parent else []), node]

    def start_of(self, name: str) -> Node | None:
        """Return the node that the last training step on the way to a node started from; None without one."""
        path = self.path_to(name)
        steps = [node.step for node in path if node.kind == "train"]
        first = next((node for node in path if steps and node.step == steps[-1]), None)
        return None if first is None or first.parent is None else self.nodes[first.parent]


def without_seed(name: str) -> str:
    """Return a node's name without seeds."""
    return SEED.sub("", name)


def build_tree(experiment: Experiment) -> Tree:
    """Return the recipe tree of an experiment.

    Raises:
        CopraError: an unknown step or base, a recipe given twice, a recipe that repeats a step, or a step
            that cannot follow the steps before it. All problems at once, one line per problem.
    """
    tree, ends = Tree(), set()
    wrong: dict[str, list[str]] = {}
    known = Known()
    for number, (base, steps) in enumerate(_listed(experiment)):
        recipe = "+".join([base, *steps])
        found = list(recipe_problems(experiment, base, steps, known=known))
        if recipe in ends:
            found.append(f"given twice (the second time as recipe number {number + 1})")
        for problem in found:
            wrong.setdefault(problem, []).append(recipe)
        if not found:
            nodes = tuple(
                dict.fromkeys(_grow(tree, experiment, base, steps, seed) for seed in experiment.seeds)
            )
            tree.recipes.append(_end(experiment, base, steps, nodes))
            ends.add(recipe)
    problems = [f"recipes: {_together(recipes)}: {problem}" for problem, recipes in wrong.items()]
    names = [end.recipe for end in tree.recipes]
    if not problems:
        reference, primary, contrasts = experiment.reference, experiment.primary, list(experiment.contrasts)
        if reference is not None and reference not in names:
            problems.append(f"reference: {shown(reference)} is none of the recipes{hint(reference, names)}")
        if primary is not None and primary not in [*names, *contrasts]:
            kinds = "recipes and contrasts" if contrasts else "recipes"
            problems.append(
                f"primary: {shown(primary)} is none of the {kinds}{hint(primary, [*names, *contrasts])}"
            )
    if not problems and experiment.primary in names and experiment.reference in (None, experiment.primary):
        problems.append(
            "primary: it is compared with 'reference', which must be another recipe. Set 'reference', or "
            "leave 'primary' out."
        )
    if too_long := [name for name in tree.nodes if len(name) > MOST_BYTES]:
        longest = max(too_long, key=len)
        problems.append(
            f"recipes: {len(too_long)} models have names of more than {MOST_BYTES} bytes, too long for a "
            f"file's; the longest, {shown(longest)}, has {len(longest)}. Shorten the names of its steps."
        )
    if problems:
        raise CopraError("\n".join(problems))
    return tree


def training_notes(experiment: Experiment, tree: Tree) -> list[str]:
    """Return notes on unexpected effects of the settings of the tree's training steps, one line per note."""
    steps = {name: step for name in tree.trainings if isinstance(step := experiment.steps[name], Method)}
    return [f"steps.{name}: {note}" for name, step in steps.items() for note in step.notes()]


def _together(recipes: list[str]) -> str:
    """Return a phrase for the recipes that have the same problem."""
    first = cut(recipes[0])
    return first if len(recipes) == 1 else f"{len(recipes)} of them, the first is {first}"


def _listed(experiment: Experiment) -> Iterator[tuple[str, list[str]]]:
    """Yield all recipes as (base, steps), with products expanded."""
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


def _grow(tree: Tree, experiment: Experiment, base: str, steps: list[str], seed: int) -> str:
    """Add the missing nodes of one recipe and seed to the tree; return the name of the last node."""
    if (done := tree.grown.get((base, *steps, seed))) is not None:
        return done
    node = _add(tree, _base_node(experiment, base, seed))
    for name in steps:
        step = experiment.steps[name]
        if isinstance(step, Method):
            teacher = _teacher(tree, experiment, step, node, seed)
            pretrained = _pretrained(tree, node)
            if name not in tree.trainings:
                tree.trainings[name] = _trainings(experiment, name, step)
            for training in tree.trainings[name]:
                made = _train_node(experiment, node, step, name, training, seed, teacher, pretrained)
                node = _add(tree, made)
        elif isinstance(step, FewShot):
            node = _add(tree, _prompt_node(experiment, node, name, step))
        elif isinstance(step, Quantize):
            node = _add(tree, _quantize_node(node, name, step))
        else:
            node = _add(tree, _prune_node(node, name, step, seed))
    tree.grown[base, *steps, seed] = node.name
    return node.name


def _teacher(tree: Tree, experiment: Experiment, step: Method, before: Node, seed: int) -> str:
    """Return the name of the node that teaches a training after node `before`, if it needs a teacher."""
    if (named := named_teacher(step)) is not None:
        base, *steps = named.split("+")
        return _grow(tree, experiment, base, steps, seed)
    # Hidden states need a teacher of the same shape; predictions come from the model before the prunings.
    if step.distil is not None:
        while before.parent is not None and before.kind in ("prune", "prompt"):
            before = tree.nodes[before.parent]
    return before.name


def _pretrained(tree: Tree, node: Node) -> str:
    """Return the first node with the shape of `node`: the node of its last pruning, or the base."""
    while node.parent is not None and node.kind != "prune":
        node = tree.nodes[node.parent]
    return node.name


def _add(tree: Tree, node: Node) -> Node:
    return tree.nodes.setdefault(node.name, node)


def _base_node(experiment: Experiment, base: str, seed: int) -> Node:
    spec = experiment.bases[base]
    new_seed = seed if spec.from_scratch else None
    name = _name(base, new_seed)
    settings = {"base": spec.canonical(), "seed": new_seed}
    return Node(name, "base", None, None, None, new_seed, experiment.task, None, name, settings)


def _trainings(experiment: Experiment, step: str, method: Method) -> list[Training]:
    """Return the stages of a training step."""
    stages = method.resolved_stages()
    numbers = list(stages)
    trainings = {number: method.training_of(number) for number in numbers}
    return [
        Training(
            label=step if number == numbers[-1] else f"{step}.{number}",
            number=number if len(numbers) > 1 else None,
            stage=stage,
            needs_accuracy=trainings[number].needs_accuracy,
            settings={
                "method": method.kind,
                "stage": stage.canonical(),
                "training": trainings[number].canonical(),
                "precision": experiment.compute.precision,
            },
        )
        for number, stage in stages.items()
    ]


def _train_node(
    experiment: Experiment,
    parent: Node,
    method: Method,
    step: str,
    training: Training,
    seed: int,
    teacher: str,
    pretrained: str,
) -> Node:
    before = parent.name.rsplit("+", 1)[0] if parent.step == step else parent.name
    name = f"{before}+{_name(training.label, seed if _first_seed(parent, step) else None)}"
    stage = training.stage
    return Node(
        name,
        "train",
        parent.name,
        step,
        training.number,
        seed,
        method.task or experiment.task,
        method.kind,
        name,
        {**training.settings, "seed": seed},
        teacher=teacher if stage.needs_teacher else None,
        # Later stages inherit the module from the first stage.
        pretrained=pretrained if stage.copies_pretrained and parent.step != step else None,
        latents=stage.layouts[-1].latents,
        has_recurrent_latents=stage.has_recurrent_latents,
        answers=stage.answers,
        needs_accuracy=training.needs_accuracy,
    )


def _prompt_node(experiment: Experiment, parent: Node, step: str, prompt: FewShot) -> Node:
    name = f"{parent.name}+{step}"
    settings: dict[str, Any] = {"prompt": prompt.canonical()}
    task = experiment.tasks[parent.task]
    if (worked := prompt.worked(type(task))) is not None:
        # Another version of copra may ship other examples, which is another prompt.
        settings["worked"] = {"task": task.kind, "sha256": file_sha256(worked)}
    return Node(
        name, "prompt", parent.name, step, None, parent.seed, parent.task, prompt.kind, name, settings
    )


def _first_seed(parent: Node, step: str) -> bool:
    """True if this step is the first random one, so that the names of its stages have the seed."""
    if parent.step == step:
        return "@" in parent.name.rsplit("+", 1)[1]
    return parent.seed is None


def _prune_node(parent: Node, step: str, prune: Prune, seed: int) -> Node:
    new_seed = seed if prune.metric == "random" and parent.seed is None else None
    own = seed if prune.metric == "random" else None
    settings = {"prune": prune.canonical(), "seed": own}
    return Node(
        f"{parent.name}+{_name(step, new_seed)}",
        "prune",
        parent.name,
        step,
        None,
        parent.seed if new_seed is None else new_seed,
        parent.task,
        parent.method,
        parent.trained,
        settings,
        latents=parent.latents,
        has_recurrent_latents=parent.has_recurrent_latents,
    )


def _quantize_node(parent: Node, step: str, quantize: Quantize) -> Node:
    name = f"{parent.name}+{step}"
    settings = {"quantize": quantize.canonical()}
    return replace(
        parent,
        name=name,
        kind="quantize",
        parent=parent.name,
        step=step,
        stage=None,
        settings=settings,
        teacher=None,
        pretrained=None,
    )


def _name(label: str, seed: int | None) -> str:
    return label if seed is None else f"{label}@{seed}"


def _end(experiment: Experiment, base: str, steps: list[str], nodes: tuple[str, ...]) -> RecipeEnd:
    prunings = [step for step in steps if isinstance(experiment.steps[step], Prune | Quantize)]
    trainings = [step for step in steps if step not in prunings]
    return RecipeEnd(
        recipe="+".join([base, *steps]),
        base=base,
        pruning=" + ".join(prunings) or "dense",
        method=trainings[-1],
        order=" > ".join([base, *steps]),
        nodes=nodes,
    )
