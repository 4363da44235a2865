"""Check of the tasks that models are also asked (`evaluation.tasks`) against the recipes."""

from collections.abc import Iterator

from copra.experiment.config import Experiment
from copra.experiment.recipes import Tree, step_of
from copra.methods.few_shot import FewShot
from copra.utils.errors import CopraError


def check_other_tasks(experiment: Experiment, tree: Tree) -> None:
    """Check that the last models of recipes can be asked the tasks in `evaluation.tasks`.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    if problems := dict.fromkeys(_problems(experiment, tree)):
        raise CopraError("\n".join(problems))


def _problems(experiment: Experiment, tree: Tree) -> Iterator[str]:
    """Yield the problems of prompts whose answer rule reads numbers, where a task's answers are texts."""
    texts = [task for task in experiment.evaluation.tasks if experiment.tasks[task].answers != "number"]
    if not texts:
        return
    for end in tree.recipes:
        path = tree.path_to(end.nodes[0])
        last = next(node for node in reversed(path) if node.kind in ("train", "prompt"))
        if last.kind == "prompt" and step_of(experiment, last, FewShot).answer != "strict":
            yield (
                f"evaluation.tasks: {last.step!r} takes a number for the answer; {texts[0]!r} needs "
                f"steps.{last.step}.answer: strict. Set it, or leave the task out."
            )
