"""The registry of tables and figures: when each is made, of which files, with which settings and title.

`copra.commands.table` and `copra.commands.figure` hold the functions under the same names,
`copra.report.texts` the captions.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copra.experiment import output_settings as settings
from copra.experiment import output_sources as sources
from copra.experiment.output_sources import Source
from copra.experiment.recipes import RecipeEnd
from copra.experiment.workflow import Workflow
from copra.report.texts import CAPTIONS, PAGE
from copra.schema.pruning import Prune
from copra.utils.digests import address_of
from copra.utils.files import canonical_json, digest

Subjects = Callable[[Workflow], Sequence[str]]


@dataclass(frozen=True)
class Output:
    """A kind of table or figure.

    `subjects` returns the parts of an experiment, such as nodes, that have a file each, in a folder of the
    output's name; [""] for one file of the whole experiment; and nothing if it is not made. `sources` and
    `settings` are functions of the workflow and a subject.
    """

    title: str
    subjects: Subjects
    sources: Callable[[Workflow, str], list[Source]]
    settings: Callable[[Workflow, str], dict[str, Any]]

    def names(self, workflow: Workflow, name: str) -> list[str]:
        """Return the names of its files without their endings, if its own is `name`."""
        return [f"{name}/{subject}" if subject else name for subject in self.subjects(workflow)]

    def files(self, workflow: Workflow, subject: str, *, large: bool) -> list[str]:
        """Return the large files that it reads, or the small ones, whose changes make it again."""
        return [
            file for each in self.sources(workflow, subject) if each.large == large for file in each.files
        ]

    def options(self, workflow: Workflow, subject: str, small: Sequence[str], large: Sequence[str]) -> str:
        """Return the options of the command that name its sources.

        `small` and `large` are the same files in the same order, at the paths that the job finds them.
        """
        places = {False: iter(small), True: iter(large)}
        words: list[str] = []
        for source in self.sources(workflow, subject):
            found = [next(places[source.large]) for _ in source.files]
            if source.option and (found or source.levels):
                words += [f"--{source.option}", above(found, source.levels) if source.levels else found[0]]
        return shlex.join(words)


def above(files: Sequence[str], levels: int) -> str:
    """Return the folder so many levels above the first of some files, or "." if there are none.

    The files may be a storage's local copies, which lie in folders of their own.
    """
    return str(Path(files[0]).parents[levels - 1]) if files else "."


def _once_if(condition: Callable[[Workflow], object]) -> Subjects:
    """Return the subjects of an output for the whole experiment, under a condition."""
    return lambda workflow: [""] if condition(workflow) else []


def _sweeps_layers(workflow: Workflow) -> bool:
    """True if recipes of one method that sweep latents differ in the layers that they remove."""
    removed: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for end in {workflow.end_of[name].recipe: workflow.end_of[name] for name in workflow.swept}.values():
        removed.setdefault((end.base, end.method), set()).add(_removed_layers(workflow, end))
    return any(len(each) > 1 for each in removed.values())


def _removed_layers(workflow: Workflow, end: RecipeEnd) -> tuple[str, ...]:
    """Return the budgets of a recipe's prunings of layers."""
    steps = (workflow.experiment.steps[step] for step in end.pruning.split(" + ") if step != "dense")
    prunings = (step for step in steps if isinstance(step, Prune) and "layers" in step.units)
    return tuple(canonical_json(step.budget.canonical()) for step in prunings)


def _sizes_differ(workflow: Workflow) -> bool:
    """True if a method has a pruned or quantized recipe, and another recipe to compare it with."""
    prunings: dict[tuple[str, str], list[str]] = {}
    for end in workflow.tree.recipes:
        prunings.setdefault((end.base, end.method), []).append(end.pruning)
    return any(len(each) > 1 and set(each) != {"dense"} for each in prunings.values())


def _passes(workflow: Workflow) -> list[str]:
    """Return the nodes and objectives, as llama@0/cot, with scores from passes over the model."""
    folders = (workflow.within("scores", path).rsplit("/", 1) for path in workflow.scored)
    return [folder for folder, file in folders if file == "passes.json"]


def _curves_with_orders(workflow: Workflow) -> list[str]:
    """Return the pruning curves, of any unit, with a metric that orders its units."""
    return [name for name in workflow.curved if workflow.curve(name).metrics != ["random"]]


TABLES = {
    "accuracy_vs_flops": Output(
        "accuracy against FLOPs", _once_if(lambda flow: True), sources.accuracy, settings.accuracy
    ),
    "before_fine_tuning": Output(
        "accuracy right after pruning",
        _once_if(lambda flow: flow.tree.pruned()),
        sources.before_and_after,
        settings.before_and_after,
    ),
    "accuracy_by_task": Output(
        "accuracy on each task",
        _once_if(lambda flow: flow.on_other_tasks),
        sources.all_tasks,
        settings.all_tasks,
    ),
    "accuracy_vs_latents": Output(
        "accuracy against the number of latents",
        _once_if(lambda flow: flow.swept),
        sources.swept,
        settings.swept,
    ),
    "latent_sources": Output(
        "accuracy with latents of other sources",
        _once_if(lambda flow: flow.swapped),
        sources.swapped,
        settings.swapped,
    ),
    "latent_lens": Output(
        "the likeliest tokens of latents",
        _once_if(lambda flow: flow.seen_through),
        sources.seen_through,
        settings.seen_through,
    ),
    "pruning_curves": Output(
        "the pruning curves", _once_if(lambda flow: flow.curved), sources.curves, settings.curves
    ),
    "drop_orders": Output(
        "the orders in which layers are removed",
        _once_if(lambda flow: flow.ordered),
        sources.orders,
        settings.orders,
    ),
    "contrasts": Output(
        "the contrasts between recipes",
        _once_if(lambda flow: flow.contrasted),
        sources.contrasts,
        settings.contrasts,
    ),
    "conversions": Output(
        "models in the formats of other programs",
        _once_if(lambda flow: flow.converted),
        sources.conversions,
        settings.conversions,
    ),
}
FIGURES = {
    "accuracy_vs_flops": Output(
        "accuracy against FLOPs",
        _once_if(lambda flow: True),
        sources.of_table("accuracy_vs_flops"),
        settings.methods_of_recipes,
    ),
    "training_curves": Output(
        "the training curves", _once_if(lambda flow: flow.trainings), sources.trainings, settings.trainings
    ),
    "curriculum": Output(
        "accuracy after each stage", _once_if(lambda flow: flow.staged), sources.stages, settings.stages
    ),
    "accuracy_by_task": Output(
        "accuracy on each task",
        _once_if(lambda flow: flow.on_other_tasks),
        sources.of_table("accuracy_by_task"),
        settings.methods_of_recipes,
    ),
    "accuracy_vs_latents": Output(
        "accuracy against the number of latents",
        _once_if(lambda flow: flow.swept),
        sources.of_table("accuracy_vs_latents"),
        settings.methods_of_swept,
    ),
    "latent_sources": Output(
        "accuracy with latents of other sources",
        _once_if(lambda flow: flow.swapped),
        sources.of_table("latent_sources"),
        settings.nothing,
    ),
    "contrasts": Output(
        "the contrasts between recipes",
        _once_if(lambda flow: flow.contrasted),
        sources.of_table("contrasts"),
        settings.nothing,
    ),
    "layers_and_latents": Output(
        "accuracy by layers left and latents used",
        _once_if(_sweeps_layers),
        sources.of_table("accuracy_vs_latents"),
        settings.methods_of_swept,
    ),
    "latent_lens": Output(
        "the likeliest tokens of latents", lambda flow: flow.seen_through, sources.lens, settings.nothing
    ),
    "after_fine_tuning": Output(
        "accuracy after pruning and fine-tuning",
        _once_if(_sizes_differ),
        sources.of_table("accuracy_vs_flops"),
        settings.methods_of_recipes,
    ),
    "pruning_curves": Output(
        "the pruning curve",
        lambda flow: list(flow.curved),
        sources.of_table("pruning_curves"),
        settings.curve,
    ),
    "drop_orders": Output(
        "the orders in which metrics remove layers", _curves_with_orders, sources.order, settings.curve
    ),
    "layer_distances": Output("the layer distances", _passes, sources.scores, settings.nothing),
    "head_importance": Output("the head importance", _passes, sources.head_scores, settings.nothing),
}
TITLES = {name: output.title for name, output in {**FIGURES, **TABLES}.items()}
"""The titles of sections of the report: that of a figure and a table of one name is the table's."""


def names_of(outputs: Mapping[str, Output], workflow: Workflow) -> list[str]:
    """Return the names of all files of some outputs, without their endings."""
    return [each for name, output in outputs.items() for each in output.names(workflow, name)]


def table_files(workflow: Workflow, *kinds: str) -> list[str]:
    """Return the files of all tables, in all forms or in those of some endings."""
    kinds = kinds or ("parquet", "csv", "md", "tex")
    return [
        f"{workflow.folder}/tables/{name}.{kind}" for name in names_of(TABLES, workflow) for kind in kinds
    ]


def figure_files(workflow: Workflow, *kinds: str) -> list[str]:
    """Return the files of all figures, in all forms or in those of some endings."""
    kinds = kinds or ("svg", "png")
    names = names_of(FIGURES, workflow)
    return [f"{workflow.folder}/figures/{name}.{kind}" for name in names for kind in kinds]


def report_file(workflow: Workflow) -> str:
    """Return the report, which shows all tables and figures."""
    return f"{workflow.folder}/report.html"


def report_sources(workflow: Workflow) -> dict[str, list[str]]:
    """Return the files that the report is made of, by option of its command."""
    return {
        "tables": table_files(workflow, "parquet"),
        "figures": figure_files(workflow, "svg"),
        "models": [f"{workflow.folder}/models/{name}/copra.json" for name in workflow.ends],
    }


def table_settings(workflow: Workflow, name: str) -> str:
    """Return the params value of a table."""
    return workflow.settings("table", {"kind": name, **TABLES[name].settings(workflow, "")})


def export_settings(workflow: Workflow) -> str:
    """Return the params value of a table's other forms."""
    return workflow.settings("export", {})


def figure_settings(workflow: Workflow, name: str, subject: str = "") -> str:
    """Return the params value of a figure of a subject."""
    return workflow.settings("figure", {"kind": name, **FIGURES[name].settings(workflow, subject)})


def report_settings(workflow: Workflow) -> str:
    """Return the params value of the report."""
    value = {
        "name": Path(workflow.folder).name,
        "tables": names_of(TABLES, workflow),
        "figures": names_of(FIGURES, workflow),
        "titles": TITLES,
        "config": workflow.config,
        # A path out of the working folder is another one on another machine.
        "sources": [Path(file).name if file.startswith(("/", "..")) else file for file in workflow.files],
        "texts": digest([address_of(path) for path in (PAGE, CAPTIONS)]),
    }
    return workflow.settings("page", value)
