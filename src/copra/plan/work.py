"""The FLOPs of jobs, by copra's own counter, and the number of sequential passes through a layer."""

from dataclasses import replace
from math import ceil
from typing import Any

from copra.cost.flops import FlopCounter, of_training_work, passes
from copra.plan.estimate import Estimate, stage_of, training_of
from copra.plan.jobs import Job
from copra.plan.machine import COMPUTING, CONVERTING, Work
from copra.plan.stages import PromptStats, Workload
from copra.schema.base import QUANTIZATION_BATCH, QUANTIZATION_ROWS
from copra.schema.latents import with_own
from copra.schema.metrics import GREEDY, counts_answers, reads_passes, searched_by, split_of
from copra.schema.pruning import PROOF_ROWS
from copra.schema.shape import ModelShape
from copra.schema.units import units_of


def work_of(estimate: Estimate, job: Job, bound: int) -> Work | None:
    """Return the work of a job (the least for `bound` 0); None if the size of a base is not known."""
    if job.rule not in (*COMPUTING, CONVERTING):
        return Work()
    workflow, evaluation = estimate.workflow, estimate.experiment.evaluation
    name = job.name.split("/")[-1 if job.rule in ("curve", "evaluate") else 0]
    names = workflow.timed if job.rule == "latency" else [name]
    if job.rule == "train" and (teacher := workflow.node(name).teacher):
        names = [name, teacher]
    if any(estimate.sizes(each) is None for each in names):
        return None
    if job.rule == "latency":
        return sum((_latency(estimate, each, bound) for each in names), Work())
    match job.rule:
        case "train":
            return training(estimate, name, bound) + _validation(estimate, name, bound)
        case "prune":
            return _reading(estimate, name, bound, 2 * PROOF_ROWS, PROOF_ROWS)
        case "quantize":
            return _reading(estimate, name, bound, 2 * QUANTIZATION_ROWS, QUANTIZATION_BATCH)
        case "score":
            return _scoring(estimate, bound, *job.name.split("/"))
        case "logit_lens":
            return answers(estimate, name, bound, evaluation.lens)
        case "curve":
            curve = workflow.curve(job.name.split("/")[0])
            batch_size = estimate.experiment.importance.batch_size
            once = _reading(estimate, name, bound, _questions(estimate, name), batch_size)
            if estimate.answering_node(name):
                once += answers(estimate, name, bound, _questions(estimate, name))
            return once * (1 + len(list(curve.lines())) * len(curve.remove))
        case "sweep_latents":
            numbers = {*evaluation.latents, workflow.node(name).latents}
            questions = _questions(estimate, name)
            works = (answers(estimate, name, bound, questions, latents=number) for number in numbers)
            return sum(works, Work())
        case "swap_latents":
            return _swapping(estimate, name, bound)
        case "convert":
            return _converting(estimate, name, bound)
        case "evaluate":
            return answers(estimate, job.name, bound, _questions(estimate, job.name))
    raise ValueError(f"rule {job.rule} computes with a model, and its work is unknown")


def training(estimate: Estimate, name: str, bound: int) -> Work:
    """Return the work of a training without its validations, as its manifest will count it."""
    schedule, depth = estimate.schedule(name), len(estimate.computed_shape(name, bound).layers)
    flops = _training_flops(estimate, name, bound, schedule.training_work)
    return Work(flops, layers=3 * schedule.steps * schedule.micro_batches * schedule.depth * depth)


def _validation(estimate: Estimate, name: str, bound: int) -> Work:
    node, schedule = estimate.workflow.node(name), estimate.schedule(name)
    settings, depth = training_of(node), len(estimate.computed_shape(name, bound).layers)
    flops = _training_flops(estimate, name, bound, schedule.validation_work, backward=False)
    work = Work(flops, layers=schedule.batches * schedule.depth * depth)
    if settings.needs_accuracy and node.answers:
        valid = estimate.rows(name).sizes["valid"]
        work += answers(estimate, name, bound, min(settings.validation_rows or valid, valid))
    return work * settings.num_validations


def _training_flops(
    estimate: Estimate, name: str, bound: int, workload: Workload, *, backward: bool = True
) -> float:
    node = estimate.workflow.node(name)
    layers = stage_of(node).extra_modules().get("step_decoder", {}).get("layers", 0)
    teacher = estimate.computed_shape(node.teacher, bound) if node.teacher else None
    shape, rank = estimate.computed_shape(name, bound), training_of(node).lora_rank
    return of_training_work(shape, workload, layers, teacher, rank, backward=backward)


def answers(estimate: Estimate, evaluation: str, bound: int, questions: int, **changes: Any) -> Work:
    """Return the work of answers as long as right ones.

    `evaluation` is as in `Workflow.node_and_task`; `changes` are those of the node's generation spec.
    """
    name, stats = estimate.workflow.node_and_task(evaluation)[0].name, estimate.prompt_stats(evaluation)
    if changes and stats.spec is not None:
        stats = replace(stats, spec=replace(stats.spec, **changes))
    return answering_work(
        stats, estimate.computed_shape(name, bound), questions, estimate.experiment.evaluation.batch_size
    )


def _swapping(estimate: Estimate, name: str, bound: int) -> Work:
    """Return the work of answers for each source of latents, and of reading the latents of all questions."""
    questions, stats = _questions(estimate, name), estimate.prompt_stats(name)
    evaluation = estimate.experiment.evaluation
    sequential = {"own": {}, "drop_last": {"latents": estimate.workflow.node(name).latents - 1}}
    # Given inputs are read as those of pause tokens are.
    given = {"thought": "embedding"}
    work = Work()
    for source in with_own(evaluation.latents_from):
        work += answers(estimate, name, bound, questions, **sequential.get(source, given))
    until_first_token = replace(stats, lengths=tuple((prompt, 1) for prompt, _ in stats.lengths))
    shape = estimate.computed_shape(name, bound)
    return work + answering_work(until_first_token, shape, questions, evaluation.batch_size)


def answering_work(stats: PromptStats, shape: ModelShape, questions: int, batch_size: int) -> Work:
    counter = FlopCounter(shape)
    totals = (counter.of_answer(stats.spec, *each, stats.cached).total for each in stats.lengths)
    flops = questions * sum(totals) / len(stats.lengths)
    longest = max(generated for _, generated in stats.lengths)
    depth = sum(1 for _ in passes(stats.spec, stats.lengths[0][0], longest, stats.cached))
    return Work(flops, flops, ceil(questions / batch_size) * depth * len(shape.layers))


def _converting(estimate: Estimate, name: str, bound: int) -> Work:
    """Return the work of answers one at a time: of the checkpoint, and of its file in each format.

    Each also answers a question to warm up.
    """
    conversions, shape = estimate.experiment.conversions, estimate.computed_shape(name, bound)
    assert conversions is not None, "without them, nothing is converted"
    size = estimate.rows(name).sizes[estimate.experiment.evaluation.split]
    questions = 1 + min(conversions.questions, size)
    once = answering_work(estimate.prompt_stats(name), shape, questions, batch_size=1)
    return once * (1 + len(conversions.formats))


def _questions(estimate: Estimate, evaluation: str) -> int:
    settings = estimate.experiment.evaluation
    size = estimate.rows(evaluation).sizes[settings.split]
    return min(settings.limit or size, size)


def _latency(estimate: Estimate, name: str, bound: int) -> Work:
    """Return the work of measuring a model.

    Questions are answered one by one and in a batch, at natural and at forced length; worked examples are
    read anew and from the cache.
    """
    latency, stats = estimate.experiment.latency, estimate.prompt_stats(name)
    assert latency is not None, "without it, no latency is measured"
    ways = dict.fromkeys((replace(stats, cached=0), stats))
    pairs = ((latency.questions, 1), (latency.batch_size, latency.batch_size))
    works = (
        answering_work(way, estimate.computed_shape(name, bound), *pair) for way in ways for pair in pairs
    )
    return sum(works, Work()) * (2 * (1 + latency.repetitions))


def _reading(
    estimate: Estimate, name: str, bound: int, number: int, batch_size: int, *, learns: bool = False
) -> Work:
    """Return the work of reading `number` whole rows with the loss on steps and answer."""
    rows, shape = estimate.rows(name).rows["valid"], estimate.computed_shape(name, bound)
    lengths = [len(row.question) + sum(map(len, row.steps)) + len(row.answer) for row in rows]
    labels = sum(lengths) - sum(len(row.question) for row in rows)
    sums = (sum(lengths), sum(length**2 for length in lengths), labels)
    flops = FlopCounter(shape).of_training(*(number * each / len(rows) for each in sums), learns=learns)
    return Work(flops, layers=(3 if learns else 1) * ceil(number / batch_size) * len(shape.layers))


def _scoring(estimate: Estimate, bound: int, name: str, objective: str, scoring: str) -> Work:
    """Return the work of a scoring run; passages of a text are assumed as long as the task's rows."""
    importance, number = estimate.experiment.importance, estimate.rows(name).sizes[split_of(scoring)]
    if reads_passes(scoring):
        number = min(importance.rows, number)
        return _reading(estimate, name, bound, number, importance.batch_size, learns=True)
    if scoring.endswith(".gates"):
        number, batch_size = importance.gates.steps * importance.gates.batch_size, importance.gates.batch_size
        return _reading(estimate, name, bound, number, batch_size, learns=True)
    number = min(importance.validation_rows, number)
    if counts_answers(scoring):
        once = answers(estimate, name, bound, number)
    else:
        once = _reading(estimate, name, bound, number, importance.batch_size)
    kind, metric = searched_by(scoring)
    candidates = len(units_of(kind, estimate.shape(name, bound)))
    if metric not in GREEDY:
        return once * candidates
    free = candidates - len(importance.greedy_protect)
    removals = estimate.workflow.greedy_removals(name, objective, scoring)
    removals = min(free, candidates - 1) if removals is None else removals
    return once * sum(max(free - gone, 0) for gone in range(removals))
