"""The command line of each rule: the names of its jobs, and for each its options and the files that it reads.

With them a person can type a command with a config and the name of a job, and gets what the workflow makes. A
test compares them with the shell lines of workflow/rules.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

from copra.experiment.outputs import (
    FIGURES,
    TABLES,
    Output,
    above,
    export_settings,
    figure_settings,
    names_of,
    report_file,
    report_settings,
    report_sources,
    table_settings,
)
from copra.experiment.recipes import Node, NodeKind
from copra.experiment.workflow import Workflow
from copra.schema.metrics import split_of
from copra.schema.scoring import Objective
from copra.tasks.task import Split
from copra.utils.files import tables_beside


@dataclass(frozen=True)
class CommandLine:
    """The options of a job, and the files that it reads: small ones, not the large tables beside them."""

    reads: list[str]
    options: list[str]


@dataclass(frozen=True)
class Rule:
    """A rule of the workflow, which runs the command of its name."""

    output: str
    """A file that its jobs write, relative to the folder of results, with {} for the job's name."""
    names: Callable[[Workflow], Iterable[str]]
    """The names of its jobs, as in the paths of their logs."""
    line: Callable[[Workflow, str], CommandLine]


def _line(reads: list[str], **options: str | int | float | Iterable[str]) -> CommandLine:
    words: list[str] = []
    for name, value in options.items():
        values = [value] if isinstance(value, str | int | float) else value
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return CommandLine(reads, words)


def _resources(flow: Workflow) -> dict[str, int]:
    compute = flow.experiment.compute
    return {"threads": compute.threads, "jobs_per_gpu": compute.jobs_per_gpu}


def _shared_resources(flow: Workflow) -> dict[str, int]:
    """Return the resources of a job whose work several processes share."""
    workers = flow.experiment.compute.workers
    resources = _resources(flow)
    return {**resources, "threads": resources["threads"] * workers, "processes": workers}


def _manifest(flow: Workflow, node: str) -> str:
    return f"{flow.folder}/models/{node}/copra.json"


def _parent(flow: Workflow, node: str) -> str:
    return f"{flow.parent(node)}/copra.json"


def _nodes(condition: Callable[[Node], object]) -> Callable[[Workflow], list[str]]:
    return lambda flow: [node.name for node in flow.tree.nodes.values() if condition(node)]


def _data(flow: Workflow, name: str) -> CommandLine:
    task, split = name.split("/")
    return _line(
        [],
        settings=flow.data_settings(task, cast(Split, split)),
        task=flow.task_settings(task),
        output=f"{flow.folder}/data/{name}.parquet",
    )


def _base(flow: Workflow, name: str) -> CommandLine:
    data = flow.data(name, "train", "valid")
    return _line(
        data,
        settings=flow.base_settings(name),
        files=flow.place_of(flow.base_source(name)),
        **_resources(flow),
        data=data[0],
        output=_manifest(flow, name),
    )


def _score(flow: Workflow, name: str) -> CommandLine:
    node, objective, scoring = name.split("/")
    model, rows = _manifest(flow, node), flow.data(node, split_of(scoring))
    return _line(
        [model, *rows],
        settings=flow.score_settings(node, cast(Objective, objective), scoring),
        files=flow.place_of(flow.text_source(cast(Objective, objective))),
        **_resources(flow),
        model=model,
        data=rows,
        state=f"{flow.folder}/state",
        output=f"{flow.folder}/scores/{name}.parquet",
    )


def _curve(flow: Workflow, name: str) -> CommandLine:
    curve, node = name.split("/")
    model, scores = _manifest(flow, node), flow.curve_scores(curve, node)
    questions = flow.data(node, flow.experiment.evaluation.split)
    return _line(
        [model, *questions, *scores],
        settings=flow.curve_settings(curve, node),
        **_resources(flow),
        model=model,
        data=questions,
        scores=above(scores, 2),
        state=f"{flow.folder}/state",
        output=f"{flow.folder}/curves/{name}.parquet",
    )


def _select(flow: Workflow, node: str) -> CommandLine:
    parent, scores = _parent(flow, node), flow.scores(node)
    return _line(
        [parent, *scores],
        settings=flow.select_settings(node),
        parent=parent,
        scores=tables_beside(scores),
        output=f"{flow.folder}/plans/{node}.json",
    )


def _prune(flow: Workflow, node: str) -> CommandLine:
    parent, plan, rows = _parent(flow, node), f"{flow.folder}/plans/{node}.json", flow.data(node, "train")
    return _line(
        [parent, plan, *rows],
        settings=flow.prune_settings(node),
        **_resources(flow),
        parent=parent,
        plan=plan,
        data=rows,
        output=_manifest(flow, node),
    )


def _train(flow: Workflow, node: str) -> CommandLine:
    compute, parent = flow.experiment.compute, _parent(flow, node)
    teacher, pretrained, data = flow.teacher(node), flow.pretrained(node), flow.data(node, "train", "valid")
    return _line(
        [parent, *teacher, *pretrained, *data],
        settings=flow.train_settings(node),
        **_shared_resources(flow),
        sharding="full" if compute.sharding else "none",
        parent=parent,
        teacher=teacher,
        pretrained=pretrained,
        data=data[0],
        state=f"{flow.folder}/state",
        save_every=compute.save_every_seconds,
        save_steps=compute.save_every_steps or 0,
        tracking=[flow.experiment.tracking] if flow.experiment.tracking else [],
        tracking_folder=f"{flow.folder}/tracking",
        output=_manifest(flow, node),
    )


def _from_parent(
    flow: Workflow, node: str, split: Split, **options: str | int | Iterable[str]
) -> CommandLine:
    """Return the line of a step that reads only its parent and a split, with its own options first."""
    parent, rows = _parent(flow, node), flow.data(node, split)
    return _line([parent, *rows], **options, parent=parent, data=rows, output=_manifest(flow, node))


def _prompt(flow: Workflow, node: str) -> CommandLine:
    files = flow.place_of(flow.prompt_source(node))
    return _from_parent(flow, node, "train", settings=flow.prompt_settings(node), files=files)


def _quantize(flow: Workflow, node: str) -> CommandLine:
    return _from_parent(flow, node, "valid", settings=flow.quantize_settings(node), **_resources(flow))


def _answering(
    flow: Workflow, evaluation: str, settings: str, output: str, resources: dict[str, int], **options: str
) -> CommandLine:
    """Return the line of a command that answers questions; `evaluation` is as in `Workflow.node_and_task`."""
    node, _ = flow.node_and_task(evaluation)
    model, questions = _manifest(flow, node.name), flow.data(evaluation, flow.experiment.evaluation.split)
    return _line(
        [model, *questions],
        settings=settings,
        **resources,
        model=model,
        data=questions,
        **options,
        output=f"{flow.folder}/evaluations/{evaluation}/{output}",
    )


def _evaluate(flow: Workflow, evaluation: str) -> CommandLine:
    settings, state = flow.evaluate_settings(evaluation), f"{flow.folder}/state"
    trained_on = flow.trained_on(evaluation)
    line = _answering(flow, evaluation, settings, "metrics.json", _shared_resources(flow), state=state)
    return CommandLine([*line.reads, *trained_on], [*line.options, "--trained-on", *trained_on])


def _sweep_latents(flow: Workflow, node: str) -> CommandLine:
    settings, state = flow.sweep_latents_settings(node), f"{flow.folder}/state"
    return _answering(flow, node, settings, "latents.parquet", _shared_resources(flow), state=state)


def _swap_latents(flow: Workflow, node: str) -> CommandLine:
    settings, state = flow.swap_latents_settings(node), f"{flow.folder}/state"
    return _answering(flow, node, settings, "latents_from.parquet", _shared_resources(flow), state=state)


def _logit_lens(flow: Workflow, node: str) -> CommandLine:
    return _answering(flow, node, flow.logit_lens_settings(node), "lens.parquet", _resources(flow))


def _latency(flow: Workflow, _: str) -> CommandLine:
    models = [_manifest(flow, node) for node in flow.timed]
    data = f"{flow.folder}/data/{flow.experiment.task}/test.json"
    output = f"{flow.folder}/latency.parquet"
    return _line([*models, data], settings=flow.latency_settings(), models=models, data=data, output=output)


def _convert(flow: Workflow, node: str) -> CommandLine:
    model, questions = _manifest(flow, node), flow.data(node, flow.experiment.evaluation.split)
    return _line(
        [model, *questions],
        settings=flow.convert_settings(node),
        model=model,
        data=questions,
        folder=f"{flow.folder}/conversions/{node}/files",
        output=f"{flow.folder}/conversions/{node}/measured.parquet",
    )


def _shown(flow: Workflow, settings: str, kind: Output, subject: str, **outputs: str) -> CommandLine:
    """Return the command line of a table or a figure."""
    small, large = (kind.files(flow, subject, large=large) for large in (False, True))
    first, last = _line([], settings=settings), _line([], **outputs)
    sources = shlex.split(kind.options(flow, subject, small, large))
    return CommandLine(small, [*first.options, *sources, *last.options])


def _table(flow: Workflow, name: str) -> CommandLine:
    output = f"{flow.folder}/tables/{name}.parquet"
    return _shown(flow, table_settings(flow, name), TABLES[name], "", output=output)


def _export(flow: Workflow, name: str) -> CommandLine:
    path = f"{flow.folder}/tables/{name}"
    files = {kind: f"{path}.{kind}" for kind in ("csv", "md", "tex")}
    return _line([f"{path}.parquet"], settings=export_settings(flow), table=f"{path}.parquet", **files)


def _figure(flow: Workflow, name: str) -> CommandLine:
    kind, _, subject = name.partition("/")
    files = {end: f"{flow.folder}/figures/{name}.{end}" for end in ("svg", "png")}
    return _shown(flow, figure_settings(flow, kind, subject), FIGURES[kind], subject, **files)


def _page(flow: Workflow, _: str) -> CommandLine:
    sources = report_sources(flow)
    reads = [file for files in sources.values() for file in files]
    return _line(reads, settings=report_settings(flow), **sources, output=report_file(flow))


def _scores(flow: Workflow) -> list[str]:
    return [flow.within("scores", path).removesuffix(".json") for path in flow.scored]


def _of_kind(kind: NodeKind) -> Callable[[Workflow], list[str]]:
    return _nodes(lambda node: node.kind == kind)


def _evaluations(flow: Workflow) -> list[str]:
    return [*_nodes(lambda node: node.answers)(flow), *flow.on_other_tasks]


def _swept(flow: Workflow) -> list[str]:
    return _nodes(lambda node: node.latents)(flow) if flow.experiment.evaluation.latents else []


def _swapped(flow: Workflow) -> list[str]:
    asked = flow.experiment.evaluation.latents_from
    return _nodes(lambda node: node.has_recurrent_latents)(flow) if asked else []


def _seen_through(flow: Workflow) -> list[str]:
    asked = flow.experiment.evaluation.lens
    return _nodes(lambda node: node.has_recurrent_latents)(flow) if asked else []


def _splits(flow: Workflow) -> list[str]:
    return [f"{name}/{split}" for name, task in flow.experiment.tasks.items() for split in task.splits]


MODEL = "models/{}/copra.json"
RULES = {
    "data": Rule("data/{}.json", _splits, _data),
    "base": Rule(MODEL, _of_kind("base"), _base),
    "score": Rule("scores/{}.json", _scores, _score),
    "curve": Rule("curves/{}.parquet", lambda flow: flow.measured, _curve),
    "select": Rule("plans/{}.json", _of_kind("prune"), _select),
    "prune": Rule(MODEL, _of_kind("prune"), _prune),
    "train": Rule(MODEL, _of_kind("train"), _train),
    "prompt": Rule(MODEL, _of_kind("prompt"), _prompt),
    "quantize": Rule(MODEL, _of_kind("quantize"), _quantize),
    "evaluate": Rule("evaluations/{}/metrics.json", _evaluations, _evaluate),
    "sweep-latents": Rule("evaluations/{}/latents.parquet", _swept, _sweep_latents),
    "swap-latents": Rule("evaluations/{}/latents_from.parquet", _swapped, _swap_latents),
    "logit-lens": Rule("evaluations/{}/lens.parquet", _seen_through, _logit_lens),
    "latency": Rule("latency.parquet", lambda flow: [""] if flow.timed else [], _latency),
    "convert": Rule("conversions/{}/measured.parquet", lambda flow: flow.converted, _convert),
    "table": Rule("tables/{}.parquet", partial(names_of, TABLES), _table),
    "export": Rule("tables/{}.csv", partial(names_of, TABLES), _export),
    "figure": Rule("figures/{}.svg", partial(names_of, FIGURES), _figure),
    "page": Rule("report.html", lambda flow: [""], _page),
}
