"""Check of the pruning curves of a config against the models of its recipes."""

from collections.abc import Iterator

from copra.experiment.config import Experiment
from copra.experiment.recipes import Node, Tree
from copra.methods.registry import ALL_METHODS
from copra.schema.curve import Curve
from copra.schema.metrics import GREEDY, NEEDS_ANSWERS
from copra.utils.errors import CopraError
from copra.utils.problems import hint, shown


def check_curves(experiment: Experiment, tree: Tree) -> None:
    """Check the curves of a config against its recipes.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    recipes = {node.recipe: node for node in tree.nodes.values()}
    problems = []
    for name, curve in experiment.curves.items():
        if curve.model not in recipes:
            known = hint(curve.model, recipes)
            found = [f"model: {shown(curve.model)} is no recipe or beginning of one{known}"]
        else:
            path = tree.path_to(recipes[curve.model].name)
            found = list(_problems(curve.resolved(experiment.importance), experiment, path))
        problems += [f"curves.{name}.{problem}" for problem in found]
    if problems:
        raise CopraError("\n".join(problems))


def _problems(curve: Curve, experiment: Experiment, path: list[Node]) -> Iterator[str]:
    """Yield the problems of measuring a curve on the last model of `path`, which begins with a base."""
    importance, node = experiment.importance, path[-1]
    learned = next((each.method for each in reversed(path) if each.kind == "train"), None)
    objectives = {line.table.split("/")[0] for line in curve.lines() if line.table}
    if node.kind == "quantize":
        yield "model: only evaluation follows a quantization; take the model before it"
    elif learned is not None and (reason := ALL_METHODS[learned].unprunable):
        yield f"model: it ends with {learned}, {reason}; take a model before that"
    elif learned is None and experiment.bases[path[0].recipe].from_scratch:
        yield "model: a base from scratch knows nothing before its first training; take one after it"
    counting = [metric for metric in curve.metrics if metric in NEEDS_ANSWERS]
    if counting and (node.method is None or not node.answers):
        yield f"metrics: {counting[0]!r} counts right answers, and {curve.model} cannot answer; take loss"
    if "text" in objectives and importance.text is None:
        yield "objectives: there is no text to score on; name it under importance.text"
    if "latent" in objectives and learned is None:
        yield f"objectives: {curve.model} was never trained to think in latents; take cot or answer"
    searched = [metric for metric in curve.metrics if metric in GREEDY]
    found = importance.greedy_removals
    if searched and found is not None and max(curve.remove) > found:
        yield (
            f"remove: {searched[0]!r} finds {found} layers and {max(curve.remove)} are to go; raise "
            "importance.greedy_removals to that, or leave it out"
        )
