"""The work of jobs: FLOPs by copra's own counter, and the number of sequential passes through a layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from math import ceil
from random import Random

from copra.cost.flops import FlopCounter, of_training_work, passes
from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.methods.few_shot import FewShot
from copra.methods.method import Stage
from copra.schema.shape import ModelShape
from copra.schema.training import Training

MARKERS = Markers(0, 0, 0)
ASKED = 20
"""Number of sampled questions whose lengths represent all questions."""

Sums = dict[str, dict[str, float]]
"""Tokens, context and supervised positions by reader, as in a manifest."""


@dataclass(frozen=True)
class Work:
    """FLOPs, sequential passes through a layer, and bytes of a job.

    `written` are those of the `flops` that write answers, token by token. `layers` is the number of
    sequential passes through a single layer, which bound the time of a small model at any FLOPs per second.
    `moved` are the bytes of weights that are read or saved.
    """

    flops: float = 0.0
    layers: float = 0.0
    written: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * each for each in astuple(self)))


@dataclass(frozen=True)
class TrainingSchedule:
    """The workload of a training stage, for any model shape.

    There are `steps` optimizer steps of `parts` batches each, and `looks` validations of `batches` batches
    each. Each batch takes `depth` sequential passes of the model. A step decoder has `decoder` layers (None:
    as many as the model), adapters have the rank `lora` (None: all weights are trained).
    """

    steps: int
    parts: int
    learned: Sums
    looks: int
    batches: int
    looked: Sums
    depth: int
    decoder: int | None
    lora: int | None = None

    def learning(self, shape: ModelShape, teacher: ModelShape | None = None) -> Work:
        """Return the training work, as manifests count it."""
        flops = of_training_work(shape, self.learned, self.decoder, teacher, self.lora)
        return Work(flops, 3 * self.steps * self.parts * self.depth * len(shape.layers))

    def looking(self, shape: ModelShape, teacher: ModelShape | None = None) -> Work:
        """Return the work of the validations, which have no backward pass."""
        flops = of_training_work(shape, self.looked, self.decoder, teacher, self.lora, backward=False)
        return Work(flops, self.batches * self.depth * len(shape.layers)) * self.looks


@dataclass(frozen=True)
class PromptStats:
    """The decoding, and the lengths of sampled questions: tokens of the prompt and of the answer.

    The first `known` tokens of all prompts are read once.
    """

    decoding: GenerationSpec | None
    lengths: tuple[tuple[int, int], ...]
    known: int = 0


def course(
    stage: Stage,
    settings: Training,
    rows: Mapping[str, Sequence[TokenRow]],
    sizes: Mapping[str, int],
) -> TrainingSchedule:
    """Return the schedule of a training stage, from a sample of rows (train, valid) and the split sizes."""
    fitting = [row for row in rows["train"] if stage.lay_out(row, MARKERS).length <= settings.max_tokens]
    number = max(1, round(sizes["train"] * len(fitting) / len(rows["train"])))
    each_epoch = ceil(number / settings.batch_size)
    steps = settings.steps or max(1, round(settings.epochs * each_epoch))
    whole, rest = divmod(steps, each_epoch)
    samples = whole * number + min(rest * settings.batch_size, number)
    micro = settings.micro_batch_size or settings.batch_size
    valid = min(settings.validation_rows or sizes["valid"], sizes["valid"])
    return TrainingSchedule(
        steps=steps,
        parts=ceil(settings.batch_size / micro),
        learned=_times(samples, _sums(stage, fitting or rows["train"], steps)),
        looks=settings.num_validations,
        batches=ceil(valid / micro),
        looked=_times(valid, _sums(stage, rows["valid"], None)),
        depth=_depth(stage),
        decoder=stage.extra_modules().get("step_decoder", {}).get("layers", 0),
        lora=settings.lora_rank,
    )


def asking(stage: Stage, rows: Iterable[TokenRow], max_new_tokens: int) -> PromptStats:
    """Return the prompt statistics of a model after a training stage, with answers as long as right ones."""
    lengths = []
    for row in rows:
        sample = stage.lay_out(row, MARKERS)
        markers = 2 if stage.layouts[-1].markers else 0
        answer = len(sample.tokens) - len(row.question) - sample.n_latents - markers
        lengths.append((len(row.question), max(1, min(answer, max_new_tokens))))
    return PromptStats(stage.decoding(MARKERS), tuple(lengths))


def asking_by_examples(
    prompt: FewShot, rows: Sequence[TokenRow], max_new_tokens: int, worked: Sequence[TokenRow] = ()
) -> PromptStats:
    """Return the prompt statistics with the worked examples `worked`, or with examples as long as the rows.

    Answers are as long as the mean answer of `worked`, or, without it, as each row's own.
    """
    shown = worked[: prompt.num_fewshot] or rows
    chains = [sum(map(len, row.steps)) + len(row.answer) for row in shown]
    questions = [len(row.question) for row in rows]
    # "Q:", "A:", "The answer is" and blank lines take about ten tokens.
    example = (sum(chains) + sum(len(row.question) for row in shown)) / len(shown) + 10
    known = round(prompt.num_fewshot * example)
    written = [round(sum(chains) / len(chains))] * len(rows) if worked else chains
    lengths = [
        (known + question + 4, max(1, min(chain + 3, max_new_tokens)))
        for question, chain in zip(questions, written, strict=True)
    ]
    return PromptStats(None, tuple(lengths), known)


def with_latents(asked: PromptStats, number: int) -> PromptStats:
    """Return the prompt statistics with another number of latents."""
    return replace(asked, decoding=replace(asked.decoding, latents=number))


def answering(asked: PromptStats, shape: ModelShape, questions: int, batch_size: int) -> Work:
    """Return the work of `questions` greedy answers in batches; the prompts' common prefix is not counted."""
    counter = FlopCounter(shape)
    flops = sum(
        counter.of_answer(asked.decoding, prompt, generated, asked.known).total
        for prompt, generated in asked.lengths
    )
    longest = max(generated for _, generated in asked.lengths)
    depth = sum(1 for _ in passes(asked.decoding, asked.lengths[0][0], longest, asked.known))
    batches = ceil(questions / batch_size)
    written = questions * flops / len(asked.lengths)
    return Work(written, batches * depth * len(shape.layers), written)


def reading(
    rows: Sequence[TokenRow], shape: ModelShape, number: float, batch_size: int, *, learns: bool = False
) -> Work:
    """Return the work of a pass over `number` whole rows with the loss on steps and answer.

    If `learns`, the backward pass is included.
    """
    tokens = [len(row.question) + sum(map(len, row.steps)) + len(row.answer) for row in rows]
    labels = [length - len(row.question) for length, row in zip(tokens, rows, strict=True)]
    sums = (sum(tokens), sum(length**2 for length in tokens), sum(labels))
    flops = FlopCounter(shape).of_training(*(number * each / len(rows) for each in sums), learns=learns)
    return Work(flops, (3 if learns else 1) * ceil(number / batch_size) * len(shape.layers))


def _sums(stage: Stage, rows: Sequence[TokenRow], steps: int | None) -> Sums:
    """Return the mean workload per row, by reader.

    In training (`steps` is not None) layouts are drawn and can change with the step.
    """
    draw = None if steps is None else Random(0)
    sums: Sums = {}
    for index, row in enumerate(rows):
        now = stage if steps is None else stage.at_step(1 + index * steps // len(rows), steps)
        for work in stage.flop_workload(now.lay_out(row, MARKERS, draw)):
            entry = sums.setdefault(work.reader, dict.fromkeys(("tokens", "context", "supervised"), 0.0))
            entry["tokens"] += work.tokens / len(rows)
            entry["context"] += work.context / len(rows)
            entry["supervised"] += work.supervised / len(rows)
    return sums


def _times(number: float, sums: Sums) -> Sums:
    return {reader: {name: number * mean for name, mean in means.items()} for reader, means in sums.items()}


def _depth(stage: Stage) -> int:
    """Return the number of sequential passes of a training sequence: one per latent or iteration, and one."""
    decoding = stage.decoding(MARKERS)
    return 1 if decoding is None else sum(1 for _ in passes(decoding, 1, 1))
