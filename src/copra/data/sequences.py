"""How a row becomes one token sequence with labels, and how a checkpoint answers.

The text is `Q "\\n" s_1 "\\n" ... s_m "\\n" "### " A eos`. A method leaves out steps and may put latents
in the place of the first ones: `Q <start> <latent>*n <end> s_{k+1}..s_m A`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

IGNORED = -100
"""The label of a position that is not supervised."""


@dataclass(frozen=True)
class TokenRow:
    """A row in tokens: the question with its line break, each step with its own, and `### A` eos.

    `mark` is the number of tokens with which every answer begins, those of `### `.
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

    `labels[t]` is `tokens[t]` where the loss is taken and IGNORED elsewhere (not yet shifted).
    `first_latent` is the position of the first latent, or where it would be: batches are aligned there.
    What only some methods need: `read`, positions whose hidden states the loss reads, `teacher`, the
    sequence that a teacher reads, and `explained`, the text that must be told from each group of latents
    (`latents_per_text` of them).
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
        """Tokens of the longest sequence that a model reads."""
        return max(len(self.tokens), len(self.teacher.tokens) if self.teacher else 0)


@dataclass(frozen=True)
class Work:
    """What training computes for a sample: the reader, the tokens that it reads, and at how many of them the
    LM head is read.

    Sequences are read by "model", by "teacher", a frozen model, by "step_decoder" and by "emulator"; each
    token attends to the whole sequence and to `past` tokens in the cache before it. Single states are read by
    the networks of `STATE_READERS`. `copra.cost.flops.of_training_work` says what each costs.
    """

    reader: str
    tokens: int
    supervised: int = 0
    past: int = 0

    @property
    def context(self) -> int:
        """Pairs of a token and one that it is scored against."""
        return 0 if self.reader in STATE_READERS else self.tokens * (self.past + self.tokens)


STATE_READERS = ("projection", "teacher_projection", "mind_reader", "emulation")
"""Networks that make something of one hidden state: a latent's input, by the model's projection or its
teacher's; what a student's blocks read, and what an emulator predicts, for each block and sample."""


Thought = Literal["hidden", "embedding"]
"""What a latent position reads: the hidden state before it, or the learned `<|latent|>` embedding."""

LatentInput = Literal["raw", "scaled", "projected"]
"""How a hidden state becomes an input embedding: as it is, brought to the embeddings' mean norm, or through
a learned projection."""


def parallel_iterations(iterations: int | None, latents: int) -> int:
    """Jacobi iterations over so many latents at once; 0 where they are fed one after another.

    As many iterations as latents make the sequential chain, which costs less when run as such.
    """
    return 0 if iterations is None or iterations >= latents else iterations


def rounded_up(number: int, multiple: int) -> int:
    """The least multiple that is no less than a number."""
    return -(-number // multiple) * multiple


AnswerRule = Literal["flexible", "strict", "harness-flexible", "harness-strict"]
"""How the answer of a prompted model is found and compared: `copra.tasks.answers` and, to the letter of
lm-evaluation-harness, `copra.evaluation.harness`."""


@dataclass(frozen=True)
class Prompting:
    """How a model that was never trained to answer is asked: worked examples, then the question.

    `question` is the form of a question with `{question}` in it, `stops` are texts that end an answer,
    `answer` says how the answer is found in the generated text and compared, and `max_new_tokens` is the
    longest answer (None: as long as others).
    """

    exemplars: str
    question: str
    stops: tuple[str, ...]
    answer: AnswerRule
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class GenerationSpec:
    """How a checkpoint answers: prompt, `prefix_ids`, `latents` latent positions, `suffix_ids`, then greedy
    text.

    A part of the manifest: the number of latents is a property of the checkpoint. Latents are fed one
    after another, or all at once `iterations` times over (Jacobi iterations, arXiv 2506.18582). With
    `emulated`, a thought emulator reads the prompt first (arXiv 2311.01460).
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

    def to_json(self) -> dict[str, Any]:
        value = asdict(self) | {"prefix_ids": list(self.prefix_ids), "suffix_ids": list(self.suffix_ids)}
        if self.prompting is not None:
            value["prompting"]["stops"] = list(self.prompting.stops)
        return value

    @staticmethod
    def from_json(value: dict[str, Any]) -> "GenerationSpec":
        prompting = value.get("prompting")
        if prompting is not None:
            prompting = Prompting(**{**prompting, "stops": tuple(prompting["stops"])})
        tokens = {name: tuple(value[name]) for name in ("prefix_ids", "suffix_ids")}
        return GenerationSpec(**{**value, **tokens, "prompting": prompting})

    def longest_answer(self, otherwise: int) -> int:
        """The most tokens that an answer may have: `otherwise`, or the limit of a prompt of its own."""
        own = None if self.prompting is None else self.prompting.max_new_tokens
        return otherwise if own is None else own

    @property
    def answer_rule(self) -> str:
        """How the answer is found in the generated text: "marker" (`### answer`), or the prompt's rule."""
        return "marker" if self.prompting is None else self.prompting.answer

    @property
    def has_recurrent_latents(self) -> bool:
        """Whether latents are fed one after another (a learned embedding needs no loop)."""
        return self.thought == "hidden" and self.latents > 0

    @property
    def jacobi_iterations(self) -> int:
        """Iterations over all latents at once; 0 where they are fed one after another."""
        return parallel_iterations(self.iterations, self.latents) if self.has_recurrent_latents else 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Modules beside the language model that an answer needs."""
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
    """Leave out the first `skip` steps (None: all) and put `latents` latents in their place.

    Supervised are the remaining steps and the answer; the question, the markers and the latents are
    not (2412.06769, section 3). `markers` None leaves the markers out: legal without latents, or when
    `pause` says which token stands for a latent (pause tokens). The first `given` of the remaining steps
    are read and not supervised (scratchpad).
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
