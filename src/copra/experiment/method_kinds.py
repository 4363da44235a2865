"""The kind of method behind each step that trains or prompts, which figures and comparisons go by."""

from copra.experiment.config import Experiment
from copra.experiment.recipes import Tree
from copra.methods import Method
from copra.methods.coconut import Coconut
from copra.methods.few_shot import FewShot


def method_kind(step: Method | FewShot) -> str:
    """Return the kind of a step, or the name of the control that its settings make of it.

    Coconut's controls (arXiv 2412.06769, section 4.4) share the kind `coconut` in a config, but answer
    another question: "pause_as_thought", "without_thought" and "without_curriculum".
    """
    if isinstance(step, Coconut):
        if step.thought == "embedding":
            return "pause_as_thought"
        if step.thought == "none":
            return "without_thought"
        if not step.curriculum:
            return "without_curriculum"
    return step.kind


def method_kinds(experiment: Experiment, tree: Tree) -> dict[str, str]:
    """Return the kind of each step of the tree that is a method or a prompt, by step.

    The methods of recipes come first, those that only prepare them after: figures give the first method of a
    kind the kind's own color.
    """
    names = [*(end.method for end in tree.recipes), *(node.step for node in tree.nodes.values())]
    steps = {name: experiment.steps[name] for name in names if name is not None}
    return {name: method_kind(step) for name, step in steps.items() if isinstance(step, Method | FewShot)}
