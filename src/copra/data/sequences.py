r"""The layout of a row as one token sequence with labels, and the generation spec of a checkpoint.

The text is `Q "\n" s_1 "\n" ... s_m "\n" "### " A eos`. A method leaves out steps and may replace the
first ones by latents: `Q <start> <latent>*n <end> s_{k+1}..s_m A`.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from copra.schema.loop import Loop

IGNORED = -100
"""The label of a position that is not supervised."""


@dataclass(frozen=True)
class TokenRow:
    """A tokenized row: the question and each step with their line breaks, and the answer `### A` eos.

    `mark` is the number of tokens of `### `, with which every answer begins.
    """

    id: str
    question: list[int]
    steps: list[list[int]]
    answer: list[int]
    mark: int = 1


@dataclass(frozen=True)
class Markers:
    """Token ids of the three latent markers."""

    start: int
    latent: int
    end: int


@dataclass(frozen=True)
class Sample:
    """One training sequence.

    `labels[t]` is `tokens[t]` at supervised positions and IGNORED elsewhere (not yet shifted).
    `first_latent` is the position of the first latent, or the position where it would be: batches are
    aligned there. Fields of some methods only: `read`, positions whose hidden states the loss reads;
    `teacher`, the sequence that a teacher reads; `explained`, the target text of each group of
    `latents_per_text` latents.
    """

    id: str
    tokens: list[int]
    labels: list[int]
    first_latent: int
    n_latents: int
    read: tuple[int, ...] = ()
    teacher: "Sample | None" = None
    explained: tuple[tuple[int, ...], ...] = ()
    latents_per_text: int = 1

    @property
    def length(self) -> int:
        """The number of tokens of the longer of this sequence and the teacher's."""
        return max(len(self.tokens), len(self.teacher.tokens) if self.teacher else 0)


@dataclass(frozen=True)
class Work:
    """The work of a training on a sample.

    `reader` reads `tokens` tokens and computes logits at `supervised` of them. The readers of sequences are
    "model", "teacher" (a frozen model), "step_decoder" and "emulator"; each token attends to the whole
    sequence and to `past` tokens in the cache before it. The networks of `STATE_READERS` read single states.
    `copra.cost.flops.of_training_work` computes the cost of each.
    """

    reader: str
    tokens: int
    supervised: int = 0
    past: int = 0

    @property
    def context(self) -> int:
        """The number of pairs of a token and a token that it attends to."""
        return 0 if self.reader in STATE_READERS else self.tokens * (self.past + self.tokens)


STATE_READERS = ("projection", "teacher_projection", "mind_reader", "emulation")
"""Networks that read one hidden state at a time: the latent projections of the model and its teacher, and,
for each block and sample, the networks of the mind reader and of the emulator."""


Thought = Literal["hidden", "embedding"]
"""The input of a latent position: the hidden state before it, or the learned `<|latent|>` embedding."""

LatentInput = Literal["raw", "scaled", "projected"]
"""The conversion of a hidden state to an input embedding: none, scaling to the embeddings' mean norm, or a
learned projection."""


def parallel_iterations(iterations: int | None, latents: int) -> int:
    """Return the number of Jacobi iterations over the latents; 0 if they are fed one after another.

    With at least as many iterations as latents the result is that of the sequential chain, which costs less.
    """
    return 0 if iterations is None or iterations >= latents else iterations


def rounded_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not less than a number."""
    return -(-number // multiple) * multiple


AnswerRule = Literal["flexible", "strict", "harness-flexible", "harness-strict"]
"""The rule that extracts and compares a prompted model's answer: `copra.tasks.answers` or, exactly as in
lm-evaluation-harness, `copra.evaluation.harness`."""


@dataclass(frozen=True)
class Prompting:
    """The prompt of a model that was never trained to answer: worked examples, then the question.

    `question` is the template of a question with `{question}` in it, `stops` are texts that end an answer,
    `answer` is the rule that extracts the answer from the generated text and compares it, and
    `max_new_tokens` is the maximum length of an answer (None: that of other models).
    """

    exemplars: str
    question: str
    stops: tuple[str, ...]
    answer: AnswerRule
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class GenerationSpec:
    """The sequence by which a checkpoint answers.

    It is the prompt, `prefix_ids`, `latents` latent positions, `suffix_ids`, then greedy text. It is part of
    the manifest: the number of latents is a property of the checkpoint. Latents are fed one after another, or
    all at once `iterations` times (Jacobi iterations, arXiv 2506.18582). With `emulated`, a thought emulator
    reads the prompt first (arXiv 2311.01460). With `loop`, a block of layers is run several times.
    """

    prefix_ids: tuple[int, ...]
    latents: int
    thought: Thought
    latent_token: int
    suffix_ids: tuple[int, ...]
    latent_input: LatentInput = "raw"
    iterations: int | None = None
    emulated: bool = False
    prompting: Prompting | None = None
    loop: Annotated[Loop | None, Field(exclude_if=lambda value: value is None)] = None

    def to_json(self) -> dict[str, Any]:
        value = asdict(self) | {"prefix_ids": list(self.prefix_ids), "suffix_ids": list(self.suffix_ids)}
        loop = value.pop("loop")
        if loop is not None:
            value["loop"] = loop.canonical()
        if self.prompting is not None:
            value["prompting"]["stops"] = list(self.prompting.stops)
        return value

    def longest_answer(self, otherwise: int) -> int:
        """Return the maximum number of tokens of an answer: the prompt's own limit, or else `otherwise`."""
        own = None if self.prompting is None else self.prompting.max_new_tokens
        return otherwise if own is None else own

    @property
    def answer_rule(self) -> str:
        """The rule that extracts the answer from generated text: "marker" (`### answer`), or the prompt's."""
        return "marker" if self.prompting is None else self.prompting.answer

    @property
    def has_recurrent_latents(self) -> bool:
        """True if there are latents that are hidden states (a learned embedding needs no loop)."""
        return self.thought == "hidden" and self.latents > 0

    @property
    def added_tokens(self) -> int:
        """The number of tokens between a prompt and its answer: latents, markers and other fixed tokens."""
        return len(self.prefix_ids) + self.latents + len(self.suffix_ids)

    @property
    def reads_markers(self) -> bool:
        """True if a model that answers so was trained with the latent markers."""
        return bool(self.prefix_ids or self.latents)

    @property
    def jacobi_iterations(self) -> int:
        """The number of Jacobi iterations over all latents; 0 if they are fed one after another."""
        return parallel_iterations(self.iterations, self.latents) if self.has_recurrent_latents else 0

    @property
    def unexportable_part(self) -> str | None:
        """The first part of it that a loop over single passes cannot reproduce, in words, if there is one."""
        found = {
            "a loop over its layers": self.loop is not None,
            "a thought emulator": self.emulated,
            "worked examples": self.prompting is not None,
            "Jacobi iterations": bool(self.jacobi_iterations),
            "projected latents": self.latent_input == "projected" and self.has_recurrent_latents,
        }
        return next((words for words, is_so in found.items() if is_so), None)

    @property
    def extra_modules(self) -> tuple[str, ...]:
        """The names of the extra modules that answering needs."""
        projection = (
            ("projection",) if self.has_recurrent_latents and self.latent_input == "projected" else ()
        )
        return (*projection, *(("mind_reader", "emulator") if self.emulated else ()))


def lay_out(
    row: TokenRow,
    skip: int | None,
    latents: int,
    markers: Markers | None,
    *,
    pause: int | None = None,
    given: int = 0,
) -> Sample:
    """Return the sample of a row whose first `skip` steps (None: all) are replaced by `latents` latents.

    The remaining steps and the answer are supervised; the question, the markers and the latents are not
    (2412.06769, section 3). `markers` None leaves the markers out, which is allowed without latents, or if
    `pause` is the token of a latent (pause tokens). The first `given` of the remaining steps are read but
    not supervised (scratchpad).
    """
    kept = [] if skip is None else row.steps[skip:]
    prefix = list(row.question)
    middle: list[int] = []
    if markers is not None:
        prefix.append(markers.start)
        middle = [markers.latent] * latents + [markers.end]
    elif latents:
        if pause is None:
            raise ValueError("latents need their markers")
        middle = [pause] * latents
    shown = [token for step in kept[:given] for token in step]
    supervised = [token for step in kept[given:] for token in step] + row.answer
    return Sample(
        id=row.id,
        tokens=prefix + middle + shown + supervised,
        labels=[IGNORED] * (len(prefix) + len(middle) + len(shown)) + supervised,
        first_latent=len(prefix),
        n_latents=latents,
    )
