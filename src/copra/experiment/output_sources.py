"""The files that each table and figure is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def accuracy(workflow: Workflow, _: str) -> list[Source]:
    times = [f"{workflow.folder}/latency.parquet"] if workflow.timed else []
    others = [node for node in workflow.started if node not in workflow.ends]
    starts = list(dict.fromkeys(start.name for start in workflow.starts.values()))
    return [
        *_evaluations(workflow, [*workflow.ends, *others]),
        Source("latency", times),
        *([Source("models", _manifests(workflow, starts), 2)] if starts else []),
    ]


def before_and_after(workflow: Workflow, _: str) -> list[Source]:
    return _evaluations(workflow, workflow.before_and_after)


def all_tasks(workflow: Workflow, _: str) -> list[Source]:
    return _evaluations(workflow, [*workflow.ends, *workflow.on_other_tasks])


def contrasts(workflow: Workflow, _: str) -> list[Source]:
    nodes = [node for nodes in workflow.contrasted.values() for node in nodes]
    return _evaluations(workflow, list(dict.fromkeys(nodes)))


def conversions(workflow: Workflow, _: str) -> list[Source]:
    files = [f"{workflow.folder}/conversions/{node}/measured.parquet" for node in workflow.converted]
    return [Source("conversions", files, 2)]


def swept(workflow: Workflow, _: str) -> list[Source]:
    metrics = [f"{workflow.folder}/evaluations/{node}/metrics.json" for node in workflow.swept]
    return [_beside_answers(workflow, workflow.swept, "latents.parquet"), Source(None, metrics)]


def swapped(workflow: Workflow, _: str) -> list[Source]:
    return [_beside_answers(workflow, workflow.swapped, "latents_from.parquet")]


def seen_through(workflow: Workflow, _: str) -> list[Source]:
    return [_beside_answers(workflow, workflow.seen_through, "lens.parquet")]


def curves(workflow: Workflow, _: str) -> list[Source]:
    return [Source("curves", [f"{workflow.folder}/curves/{name}.parquet" for name in workflow.measured], 2)]


def orders(workflow: Workflow, _: str) -> list[Source]:
    nodes = [node for curve in workflow.ordered for node in workflow.curved[curve]]
    return [
        Source("models", _manifests(workflow, nodes), 2),
        Source("scores", workflow.ordered_scores, 3),
        Source(None, tables_beside(workflow.ordered_scores), large=True),
    ]


def of_table(name: str) -> Callable[[Workflow, str], list[Source]]:
    return lambda workflow, _: [Source("input", [f"{workflow.folder}/tables/{name}.parquet"])]


def trainings(workflow: Workflow, _: str) -> list[Source]:
    logs = [f"{workflow.folder}/models/{node}/training.jsonl" for node in workflow.trainings]
    return [Source(None, _manifests(workflow, workflow.trainings)), Source("input", logs, 2, large=True)]


def stages(workflow: Workflow, _: str) -> list[Source]:
    return [
        Source("input", [f"{workflow.folder}/evaluations/{node}/metrics.json" for node in workflow.staged], 2)
    ]


def scores(workflow: Workflow, subject: str) -> list[Source]:
    passes = f"{workflow.folder}/scores/{subject}/passes"
    return [Source(None, [f"{passes}.json"]), Source("input", [f"{passes}.parquet"], large=True)]


def head_scores(workflow: Workflow, subject: str) -> list[Source]:
    node, _ = subject.split("/")
    return [*scores(workflow, subject), Source("model", _manifests(workflow, [node]))]


def lens(workflow: Workflow, subject: str) -> list[Source]:
    return [Source("input", [f"{workflow.folder}/evaluations/{subject}/lens.parquet"])]


def order(workflow: Workflow, subject: str) -> list[Source]:
    node = workflow.curved[subject][0]
    scores = workflow.curve_scores(subject, node)
    return [
        Source("model", _manifests(workflow, [node])),
        Source("input", scores, 3),
        Source(None, tables_beside(scores), large=True),
    ]


def _manifests(workflow: Workflow, nodes: Sequence[str]) -> list[str]:
    return [f"{workflow.folder}/models/{node}/copra.json" for node in nodes]


def _beside_answers(workflow: Workflow, nodes: Sequence[str], file: str) -> Source:
    return Source("evaluations", [f"{workflow.folder}/evaluations/{node}/{file}" for node in nodes], 2)


def _evaluations(workflow: Workflow, nodes: Sequence[str]) -> list[Source]:
    folders = [f"{workflow.folder}/evaluations/{node}" for node in nodes]
    return [
        Source("evaluations", [f"{folder}/metrics.json" for folder in folders], 2),
        Source(None, [f"{folder}/predictions.parquet" for folder in folders], large=True),
    ]
