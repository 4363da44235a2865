"""The steps of trainings and the lengths of answers, on a base's rows and for any shape of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from copra.cost.flops import passes
from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.methods.few_shot import FewShot
from copra.methods.method import Stage
from copra.plan.rows import TaskRows
from copra.schema.training import Training
from copra.tasks.task import Task

MARKERS = Markers(0, 0, 0)
MOST_PROMPTS = 32
"""Number of rows whose lengths represent all questions."""

Workload = dict[str, dict[str, float]]
"""Tokens, context and supervised positions by reader, as in a manifest."""


@dataclass(frozen=True)
class TrainingSchedule:
    """The work of a training stage: `steps` optimizer steps, and `batches` batches per validation.

    With early stopping, `steps` is the maximum. An optimizer step has `micro_batches`, each of `depth`
    dependent passes; the largest has `tokens` padded tokens and computes `logits` logits.
    """

    steps: int
    micro_batches: int
    training_work: Workload
    batches: int
    validation_work: Workload
    depth: int
    tokens: int
    logits: float


@dataclass(frozen=True)
class PromptStats:
    """The generation spec of a model, and the tokens of sampled prompts and of their answers.

    The first `cached` tokens are common to all prompts and read once.
    """

    spec: GenerationSpec | None
    lengths: tuple[tuple[int, int], ...]
    cached: int = 0


def training_schedule(stage: Stage, settings: Training, rows: TaskRows, processes: int) -> TrainingSchedule:
    """Return the schedule of a training stage, shared by `processes`; rows that are too long are left out."""
    train, valid = rows.rows["train"], rows.rows["valid"]
    lengths = [stage.lay_out(row, MARKERS).length for row in train]
    fitting = [row for row, length in zip(train, lengths, strict=True) if length <= settings.max_tokens]
    number = max(1, round(rows.sizes["train"] * len(fitting) / len(train)))
    steps_per_epoch = ceil(number / settings.batch_size)
    steps = settings.total_steps(steps_per_epoch)
    epochs, rest = divmod(steps, steps_per_epoch)
    trained = epochs * number + min(rest * settings.batch_size, number)
    validated = min(settings.validation_rows or rows.sizes["valid"], rows.sizes["valid"])
    training_work = _workload(stage, fitting or train, trained, steps)
    longest = min(max(lengths), settings.max_tokens)
    batch = ceil(settings.batch_size / processes)
    micro_batch = min(batch, settings.micro_batch_size or batch)
    if settings.micro_batch_tokens:
        micro_batch = min(micro_batch, max(1, settings.micro_batch_tokens // longest))
    spec = stage.decoding(MARKERS)
    return TrainingSchedule(
        steps=steps,
        micro_batches=ceil(batch / micro_batch),
        training_work=training_work,
        batches=ceil(validated / micro_batch),
        validation_work=_workload(stage, valid, validated),
        depth=sum(1 for _ in passes(spec, 1, 1)) if spec else 1,
        tokens=micro_batch * longest,
        logits=micro_batch * sum(reader["supervised"] for reader in training_work.values()) / trained,
    )


def trained_prompts(stage: Stage, rows: Sequence[TokenRow], limit: int) -> PromptStats:
    """Return how a model answers after a training stage, with right answers of up to `limit` tokens."""
    spec, lengths = stage.decoding(MARKERS), []
    for row in rows[:MOST_PROMPTS]:
        given = len(row.question) + stage.layouts[-1].latents + (2 if stage.layouts[-1].markers else 0)
        answer = len(stage.lay_out(row, MARKERS).tokens) - given
        lengths.append((len(row.question), max(1, min(answer, limit))))
    return PromptStats(spec, tuple(lengths))


def few_shot_prompts(
    prompt: FewShot, task: Task, rows: TaskRows, asked: Sequence[TokenRow], limit: int
) -> PromptStats:
    """Return how a prompted model answers, with answers as long as the worked examples' solutions."""
    typical, worked = rows.typical(), prompt.worked(type(task))
    if rows.text or worked or prompt.path:
        prompting = prompt.decoding(rows.text, MARKERS.latent, worked).prompting
        assert prompting is not None
        cached = rows.count_tokens(prompting.exemplars)
    else:
        cached = prompt.num_fewshot * (typical["prompt"] + typical["generated"])
    template = rows.count_tokens(prompt.question)
    answer = max(1, round(cached / prompt.num_fewshot) - typical["prompt"] - template)
    answer = min(answer, prompt.max_new_tokens or limit)
    lengths = tuple((cached + len(row.question) + template, answer) for row in asked[:MOST_PROMPTS])
    return PromptStats(None, lengths, cached)


def _workload(stage: Stage, rows: Sequence[TokenRow], number: float, steps: int | None = None) -> Workload:
    """Return the workload of `number` rows like these.

    In training (`steps` is not None) layouts are drawn and can change with the step.
    """
    draw = None if steps is None else Random(0)
    sums: Workload = {}
    for index, row in enumerate(rows):
        now = stage if steps is None else stage.at_step(1 + index * steps // len(rows), steps)
        for work in stage.flop_workload([now.lay_out(row, MARKERS, draw)]):
            entry = sums.setdefault(work.reader, {"tokens": 0.0, "context": 0.0, "supervised": 0.0})
            for count in entry:
                entry[count] += getattr(work, count) * number / len(rows)
    return sums
