"""Check of the contrasts of a config against its recipes."""

from collections.abc import Iterator, Mapping

from copra.experiment.config import Experiment
from copra.experiment.recipes import RecipeEnd, Tree
from copra.schema.contrast import Contrast
from copra.utils.errors import CopraError
from copra.utils.problems import cut, hint, shown


def check_contrasts(experiment: Experiment, tree: Tree) -> None:
    """Check the contrasts of a config against its recipes.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    ends = {end.recipe: end for end in tree.recipes}
    problems = [
        f"contrasts.{name}{problem}"
        for name, contrast in experiment.contrasts.items()
        for problem in _problems(contrast, ends, tree)
    ]
    if problems:
        raise CopraError("\n".join(problems))


def contrast_notes(experiment: Experiment, tree: Tree) -> list[str]:
    """Return a note on contrasts without statistics, which need several seeds, or nothing."""
    ends = {end.recipe: end for end in tree.recipes}
    single = [
        name
        for name, contrast in experiment.contrasts.items()
        if max(len(ends[recipe].nodes) for recipe in contrast.recipes) == 1
    ]
    if not single:
        return []
    names = cut(", ".join(single))
    return [f"contrasts: with one seed there is no interval and no p-value ({names}). Give several 'seeds'"]


def _problems(contrast: Contrast, ends: Mapping[str, RecipeEnd], tree: Tree) -> Iterator[str]:
    """Yield the problems of a contrast, each with the end of its key's path."""
    unknown = False
    for key in ("plus", "minus"):
        for index, recipe in enumerate(getattr(contrast, key)):
            if recipe not in ends:
                unknown = True
                yield f".{key}.{index}: {shown(recipe)} is none of the recipes{hint(recipe, ends)}"
    if unknown:
        return
    tasks = {tree.nodes[ends[recipe].nodes[0]].task for recipe in contrast.recipes}
    if len(tasks) > 1:
        yield (
            f": its recipes answer the questions of {len(tasks)} tasks ({', '.join(sorted(tasks))}). Take "
            "recipes of one task"
        )
