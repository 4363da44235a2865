"""The registry of tables and figures: for each its title, and the files that it is made of.

`copra.commands.table` and `copra.commands.figure` hold the functions under the same names,
`copra.report.texts` the captions.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.workflow import Workflow
from copra.utils.files import tables_beside


@dataclass(frozen=True)
class Source:
    """Files that an option of the command names: the first of them, or the folder `levels` above it.

    `large` files can be changed only together with a small file that is a source too, so their times do not
    matter. Without an option the files are only there when the command runs.
    """

    option: str | None
    files: Sequence[str]
    levels: int = 0
    large: bool = False


@dataclass(frozen=True)
class Output:
    """A table or a figure: its title, and its sources in a workflow for a subject such as a node."""

    title: str
    sources: Callable[[Workflow, str], list[Source]]

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


def _evaluations(workflow: Workflow, nodes: Sequence[str]) -> list[Source]:
    folders = [f"{workflow.folder}/evaluations/{node}" for node in nodes]
    return [
        Source("evaluations", [f"{folder}/metrics.json" for folder in folders], 2),
        Source(None, [f"{folder}/predictions.parquet" for folder in folders], large=True),
    ]


def _accuracy(workflow: Workflow, _: str) -> list[Source]:
    times = [f"{workflow.folder}/latency.parquet"] if workflow.timed else []
    others = [node for node in workflow.started if node not in workflow.ends]
    starts = list(dict.fromkeys(start.name for start in workflow.starts.values()))
    return [
        *_evaluations(workflow, [*workflow.ends, *others]),
        Source("latency", times),
        *([Source("models", _manifests(workflow, starts), 2)] if starts else []),
    ]


def _contrasts(workflow: Workflow, _: str) -> list[Source]:
    nodes = [node for nodes in workflow.contrasted.values() for node in nodes]
    return _evaluations(workflow, list(dict.fromkeys(nodes)))


def _conversions(workflow: Workflow, _: str) -> list[Source]:
    files = [f"{workflow.folder}/conversions/{node}/measured.parquet" for node in workflow.converted]
    return [Source("conversions", files, 2)]


def _looked_into(workflow: Workflow, nodes: Sequence[str], file: str) -> list[Source]:
    return [Source("evaluations", [f"{workflow.folder}/evaluations/{node}/{file}" for node in nodes], 2)]


def _curves(workflow: Workflow, _: str) -> list[Source]:
    return [Source("curves", [f"{workflow.folder}/curves/{name}.parquet" for name in workflow.measured], 2)]


def _orders(workflow: Workflow, _: str) -> list[Source]:
    nodes = [node for curve in workflow.ordered for node in workflow.curved[curve]]
    return [
        Source("models", _manifests(workflow, nodes), 2),
        Source("scores", workflow.ordered_scores, 3),
        Source(None, tables_beside(workflow.ordered_scores), large=True),
    ]


def _manifests(workflow: Workflow, nodes: Sequence[str]) -> list[str]:
    return [f"{workflow.folder}/models/{node}/copra.json" for node in nodes]


def _of_table(name: str) -> Callable[[Workflow, str], list[Source]]:
    return lambda workflow, _: [Source("input", [f"{workflow.folder}/tables/{name}.parquet"])]


def _trainings(workflow: Workflow, _: str) -> list[Source]:
    logs = [f"{workflow.folder}/models/{node}/training.jsonl" for node in workflow.trainings]
    return [Source(None, _manifests(workflow, workflow.trainings)), Source("input", logs, 2, large=True)]


def _stages(workflow: Workflow, _: str) -> list[Source]:
    return [
        Source("input", [f"{workflow.folder}/evaluations/{node}/metrics.json" for node in workflow.staged], 2)
    ]


def _scores(workflow: Workflow, subject: str) -> list[Source]:
    passes = f"{workflow.folder}/scores/{subject}/passes"
    return [Source(None, [f"{passes}.json"]), Source("input", [f"{passes}.parquet"], large=True)]


def _head_scores(workflow: Workflow, subject: str) -> list[Source]:
    node, _ = subject.split("/")
    return [*_scores(workflow, subject), Source("model", _manifests(workflow, [node]))]


def _lens(workflow: Workflow, subject: str) -> list[Source]:
    return [Source("input", [f"{workflow.folder}/evaluations/{subject}/lens.parquet"])]


def _order(workflow: Workflow, subject: str) -> list[Source]:
    node = workflow.curved[subject][0]
    scores = workflow.curve_scores(subject, node)
    return [
        Source("model", _manifests(workflow, [node])),
        Source("input", scores, 3),
        Source(None, tables_beside(scores), large=True),
    ]


TABLES = {
    "accuracy_vs_flops": Output("accuracy against FLOPs", _accuracy),
    "before_fine_tuning": Output(
        "accuracy right after pruning", lambda flow, _: _evaluations(flow, flow.before_and_after)
    ),
    "accuracy_by_task": Output(
        "accuracy on each task", lambda flow, _: _evaluations(flow, [*flow.ends, *flow.on_other_tasks])
    ),
    "accuracy_vs_latents": Output(
        "accuracy against the number of latents",
        lambda flow, _: [
            *_looked_into(flow, flow.swept, "latents.parquet"),
            Source(None, [f"{flow.folder}/evaluations/{node}/metrics.json" for node in flow.swept]),
        ],
    ),
    "latent_sources": Output(
        "accuracy with latents of other sources",
        lambda flow, _: _looked_into(flow, flow.swapped, "latents_from.parquet"),
    ),
    "latent_lens": Output(
        "the likeliest tokens of latents",
        lambda flow, _: _looked_into(flow, flow.seen_through, "lens.parquet"),
    ),
    "pruning_curves": Output("the pruning curves", _curves),
    "drop_orders": Output("the orders in which layers are removed", _orders),
    "contrasts": Output("the contrasts between recipes", _contrasts),
    "conversions": Output("models in the formats of other programs", _conversions),
}
FIGURES = {
    "accuracy_vs_flops": Output("accuracy against FLOPs", _of_table("accuracy_vs_flops")),
    "after_fine_tuning": Output("accuracy after pruning and fine-tuning", _of_table("accuracy_vs_flops")),
    "training_curves": Output("the training curves", _trainings),
    "curriculum": Output("accuracy after each stage", _stages),
    "accuracy_by_task": Output("accuracy on each task", _of_table("accuracy_by_task")),
    "layer_distances": Output("the layer distances", _scores),
    "head_importance": Output("the head importance", _head_scores),
    "accuracy_vs_latents": Output("accuracy against the number of latents", _of_table("accuracy_vs_latents")),
    "latent_sources": Output("accuracy with latents of other sources", _of_table("latent_sources")),
    "layers_and_latents": Output(
        "accuracy by layers left and latents used", _of_table("accuracy_vs_latents")
    ),
    "latent_lens": Output("the likeliest tokens of latents", _lens),
    "pruning_curves": Output("the pruning curve", _of_table("pruning_curves")),
    "drop_orders": Output("the orders in which metrics remove layers", _order),
    "contrasts": Output("the contrasts between recipes", _of_table("contrasts")),
}
TITLES = {name: output.title for name, output in {**FIGURES, **TABLES}.items()}
"""The titles of sections of the report: that of a figure and a table of one name is the table's."""
