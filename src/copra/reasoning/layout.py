"""How a row becomes one token sequence with labels (no torch).

The text is `Q "\\n" s_1 "\\n" ... s_m "\\n" "### " A eos`. A method leaves out the first steps and
may put latents in their place: `Q <start> <latent>*n <end> s_{k+1}..s_m A`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

IGNORED = -100
"""The label of a position that is not supervised."""


@dataclass(frozen=True)
class TokenRow:
    """A row in tokens: the question with its line break, each step with its own, and `### A` eos."""

    id: str
    question: list[int]
    steps: list[list[int]]
    answer: list[int]


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
    """

    id: str
    tokens: list[int]
    labels: list[int]
    first_latent: int
    n_latents: int


Thought = Literal["hidden", "embedding"]
"""What a latent position reads: the hidden state before it, or the learned `<|latent|>` embedding."""

LatentInput = Literal["raw", "scaled"]
"""How a hidden state becomes an input embedding: as it is, or brought to the embeddings' mean norm."""


@dataclass(frozen=True)
class Decoding:
    """How a checkpoint answers: prompt, `before`, `latents` latent positions, `after`, then greedy text.

    A part of the manifest: the number of latents is a property of the checkpoint.
    """

    before: tuple[int, ...]
    latents: int
    thought: Thought
    latent_token: int
    after: tuple[int, ...]
    latent_input: LatentInput = "raw"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"before": list(self.before), "after": list(self.after)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Decoding":
        return Decoding(**{**value, "before": tuple(value["before"]), "after": tuple(value["after"])})

    @property
    def loops(self) -> bool:
        """Whether latents are fed one after another (a learned embedding needs no loop)."""
        return self.thought == "hidden" and self.latents > 0


def lay_out(row: TokenRow, skip: int | None, latents: int, markers: Markers | None) -> Sample:
    """Leave out the first `skip` steps (None: all) and put `latents` latents in their place.

    Supervised are the remaining steps and the answer; the question, the markers and the latents are
    not (2412.06769, section 3). `markers` None leaves the markers out, which is legal without latents.
    """
    kept = [] if skip is None else row.steps[skip:]
    prefix = list(row.question)
    middle: list[int] = []
    if markers is not None:
        prefix.append(markers.start)
        middle = [markers.latent] * latents + [markers.end]
    elif latents:
        raise ValueError("latents need their markers")
    supervised = [token for step in kept for token in step] + row.answer
    return Sample(
        id=row.id,
        tokens=prefix + middle + supervised,
        labels=[IGNORED] * (len(prefix) + len(middle)) + supervised,
        first_latent=len(prefix),
        n_latents=latents,
    )
