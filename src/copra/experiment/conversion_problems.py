"""Check of the conversions of a config against its recipes and bases."""

from collections.abc import Iterator

from copra.data.sequences import Markers
from copra.experiment.config import Experiment
from copra.experiment.recipes import Node, RecipeEnd, Tree, without_seed
from copra.methods.registry import stage_of_kind
from copra.models.base_config import config_of
from copra.models.families.family import PREFIX
from copra.schema.conversion import FAMILIES, Conversions, program_and_type
from copra.utils.errors import CopraError
from copra.utils.problems import hint, shown


def check_conversions(experiment: Experiment, tree: Tree) -> None:
    """Check that the models of `conversions.recipes` have a form in all formats, as far as it is known.

    Raises:
        CopraError: one line per problem, with the path of its key.
    """
    if experiment.conversions is None:
        return
    ends = {end.recipe: end for end in tree.recipes}
    problems = [
        f"conversions.recipes.{index}: {problem}"
        for index, recipe in enumerate(experiment.conversions.recipes)
        for problem in _problems(experiment, tree, ends, recipe, experiment.conversions)
    ]
    if problems:
        raise CopraError("\n".join(problems))


def _problems(
    experiment: Experiment, tree: Tree, ends: dict[str, RecipeEnd], recipe: str, conversions: Conversions
) -> Iterator[str]:
    if recipe not in ends:
        yield f"{shown(recipe)} is none of the recipes{hint(recipe, ends)}"
        return
    path = tree.path_to(ends[recipe].nodes[0])
    if problem := _answering_problem(path):
        yield f"{recipe} {problem}. Leave it out"
        return
    name = without_seed(path[0].name)
    base, config = experiment.bases[name], config_of(experiment.bases[name])
    family = config["model_type"].removeprefix(PREFIX) if config else None
    for format in conversions.formats:
        program, _ = program_and_type(format)
        known = FAMILIES[program]
        if family is not None and family not in known:
            names = " and ".join(known.values())
            yield f"{recipe} is a model of type {family}, and {format} files are written of {names}"
        elif format == "executorch-int8" and family == "gpt2":
            yield f"{recipe} is a GPT-2, whose layers are not linear ones as {format} needs"
        elif program == "gguf" and base.from_scratch and base.from_scratch.tokenizer == "words":
            key = f"bases.{name}.from_scratch.tokenizer"
            yield f"{recipe} has a tokenizer of whole words, and {format} needs {key}: bpe"


def _answering_problem(path: list[Node]) -> str | None:
    """Return what of the way that a path's last node answers has no form in any format, or None."""
    kinds = {node.kind for node in path}
    if "quantize" in kinds:
        return "stores its weights in 8 bits already"
    if "prompt" in kinds:
        return "answers with worked examples, for which no format has a form"
    *_, last = (node for node in path if node.kind == "train")
    assert last.method is not None
    spec = stage_of_kind(last.method, last.settings["stage"]).decoding(Markers(0, 1, 2))
    part = spec.unexportable_part if spec else None
    return f"answers with {part}, for which no format has a form" if part else None
