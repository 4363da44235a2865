"""What a reasoning method is.

A method is a step of the config that trains. It is a class of settings that says of which stages its
training consists; a stage says how a row is laid out, how the loss is taken and how the trained
checkpoint answers. Everything else (the loop, decoding, evaluation, cost) is shared.

To add a method: one file with a `Method` (and a `Stage` of its own where `Stage` does not do), one line
in `copra/methods/__init__.py`, and a test. A part of its own takes one line more, in
`copra/models/parts.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from copra.data.sequences import (
    IGNORED,
    GenerationSpec,
    LatentInput,
    Markers,
    Sample,
    Thought,
    TokenRow,
    Work,
    lay_out,
)
from copra.schema.settings import Name, Settings
from copra.schema.training import Distil, Training
from copra.utils.problems import cut, dotted, explain, located, shown

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.losses import LossTerms
    from copra.methods.reasoning_model import ReasoningModel


class Layout(Settings):
    """Which steps are left out of a sample and how many latents stand in their place."""

    skip: int | None = None
    """So many steps from the front are left out (null: all)."""
    latents: int = 0
    """Latents in their place."""
    latents_per_step: int | None = None
    """When set, a row of m steps has at most so many latents times m."""
    markers: bool = False
    """Whether the markers stand around the latents."""
    supervised: int | None = None
    """So many of the remaining steps, the last ones, are supervised, and the others given (null: all)."""

    def lay_out(self, row: TokenRow, markers: Markers) -> Sample:
        """The sample of a row."""
        latents = self.latents
        if self.latents_per_step is not None:
            latents = min(latents, self.latents_per_step * len(row.steps))
        given = 0 if self.supervised is None else max(0, len(row.steps) - self.supervised)
        around = markers if self.markers else None
        return lay_out(row, self.skip, latents, around, pause=markers.latent, given=given)


class Stage(Settings):
    """One stage of a method, resolved: all that its training depends on besides the optimization.

    A method with a loss, parts or samples of its own overrides the functions below that differ.
    """

    layouts: tuple[Layout, ...]
    """One layout, or several that the rows of an epoch are drawn from; the last one is what is learned."""
    weights: tuple[float, ...] = (1.0,)
    """How likely each layout is, up to a common factor."""
    thought: Thought = "hidden"
    """What a latent position reads."""
    latent_input: LatentInput = "raw"
    """How a hidden state becomes an input embedding."""

    dropout: ClassVar[bool] = True
    """Whether the dropout that a model has is on in training."""
    is_scheduled: ClassVar[bool] = False
    """Whether `at` gives other stages as training goes on."""
    reads_minds: ClassVar[bool] = False
    """Whether the loss reads a teacher's hidden states, so that it must have the student's shape."""

    @property
    def least_steps(self) -> int:
        """The fewest optimizer steps in which the stage does all that it is to do."""
        return 1

    def at_step(self, step: int, total: int) -> "Stage":
        """The stage at optimizer step `step` of 1..`total`.

        The optimizer starts anew where it changes and the batch before had chain left (`has_chain`); weights
        are chosen among the validations after its last change.
        """
        return self

    def has_chain(self, row: TokenRow, sample: Sample) -> bool:
        """True if some of a row's steps are left in its sample, for stages that move."""
        return len(sample.tokens) > len(row.question) + len(row.answer)

    def lay_out(self, row: TokenRow, markers: Markers, draw: Random | None = None) -> Sample:
        """The sample of a row; `draw` decides where several layouts are mixed (None: the last one)."""
        return self.layout_of(row, draw).lay_out(row, markers)

    def layout_of(self, row: TokenRow, draw: Random | None) -> Layout:
        """The layout of a row."""
        if draw is None or len(self.layouts) == 1:
            return self.layouts[-1]
        return draw.choices(self.layouts, self.weights)[0]

    @property
    def draws(self) -> bool:
        """Whether a row's sample is drawn anew each epoch."""
        return len(self.layouts) > 1

    def decoding(self, markers: Markers) -> GenerationSpec | None:
        """How the trained checkpoint answers (None: it cannot yet)."""
        layout = self.layouts[-1]
        return GenerationSpec(
            prefix_ids=(markers.start,) if layout.markers else (),
            latents=layout.latents,
            thought=self.thought,
            latent_token=markers.latent,
            suffix_ids=(markers.end,) if layout.markers else (),
            latent_input=self.latent_input,
        )

    @property
    def jacobi_iterations(self) -> int:
        """Iterations over all latents at once; 0 where they are fed one after another."""
        return 0

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads a frozen teacher model."""
        return False

    @property
    def copies_pretrained(self) -> bool:
        """True if a part starts as a copy of the pretrained model."""
        return False

    @property
    def has_recurrent_latents(self) -> bool:
        """Whether the trained checkpoint answers with latents that are hidden states."""
        return self.thought == "hidden" and self.layouts[-1].latents > 0

    @property
    def answers(self) -> bool:
        """Whether the trained checkpoint can answer."""
        return True

    def parts(self) -> dict[str, dict[str, Any]]:
        """Modules that are trained beside the model: their names (`copra.models.parts`) and settings."""
        return {"projection": {}} if self.latent_input == "projected" else {}

    def frozen(self) -> tuple[str, ...]:
        """What is not trained, of "model" and the names of parts."""
        return ()

    def loss_weights(self) -> dict[str, float]:
        """The terms that make the loss, with their weights; other terms are only logged."""
        return {"cross_entropy": 1.0}

    def normalizers(self, samples: Sequence[Sample]) -> dict[str, float]:
        """By how much each weighted term's sum over these samples is divided."""
        return {"cross_entropy": sum(label != IGNORED for sample in samples for label in sample.labels)}

    def flop_workload(self, sample: Sample) -> Iterator[Work]:
        """Yield the work that a sample's loss computes, for the FLOPs of the training.

        Every Jacobi iteration reads the latents once more. Latents that are projected are so each time that
        they are fed.
        """
        yield Work("model", len(sample.tokens), sum(label != IGNORED for label in sample.labels))
        if sample.n_latents:
            yield from [Work("model", sample.n_latents, past=sample.first_latent)] * self.jacobi_iterations
            if self.thought == "hidden" and self.latent_input == "projected":
                yield Work("projection", sample.n_latents * max(self.jacobi_iterations, 1))

    def loss(self, reasoner: "ReasoningModel", batch: "Batch") -> "LossTerms":
        """The terms of the loss on a batch, each as a sum and a count."""
        return self.answer_terms(reasoner, batch, self.hidden_states(reasoner, batch))

    def hidden_states(self, reasoner: "ReasoningModel", batch: "Batch") -> "Tensor":
        """Final-norm hidden states [B, N, d] of a reasoner, latents fed as the stage says."""
        return reasoner.hidden_states(batch, self.thought, self.latent_input, self.jacobi_iterations)

    def answer_terms(self, reasoner: "ReasoningModel", batch: "Batch", hidden: "Tensor") -> "LossTerms":
        """What is taken at the labels, from hidden states [B, N, d], and norms of latents for the log."""
        from copra.methods.losses import latent_norms

        terms = self.label_terms(reasoner, batch, hidden)
        # In validation only: reading all embeddings in every step would cost more than a small model.
        watched = self.thought == "hidden" and not reasoner.training
        return terms | (latent_norms(reasoner.model, batch, hidden) if watched else {})

    def label_terms(self, reasoner: "ReasoningModel", batch: "Batch", hidden: "Tensor") -> "LossTerms":
        """Cross-entropy over the labels, from hidden states [B, N, d]."""
        from copra.methods.losses import cross_entropy

        return {"cross_entropy": cross_entropy(reasoner.model, batch, hidden)}


class Method(Settings):
    """A training step of the config."""

    stage_type: ClassVar[type[Stage]] = Stage
    prunable: ClassVar[bool] = True
    """Whether a pruning may follow: not where parts belong to single layers of the model."""
    distils: ClassVar[bool] = True
    """Whether it may learn from a teacher's predictions: not where it reads a teacher in its own way."""

    kind: str
    """Which method this is."""
    task: Name | None = None
    """The task that it trains on (null: the experiment's)."""
    training: Training
    """How each stage is optimized."""
    overrides: dict[int, dict[str, Any]] = Field(default_factory=dict)
    """Keys of `training` that differ in single stages, by stage number."""
    distil: Distil | None = None
    """Learn from a teacher's predictions (null: do not)."""

    def stages(self) -> Mapping[int, Stage]:
        """The stages by their number, in order; a method that is not staged has the stage 0 alone."""
        raise TypeError(f"method {self.kind!r} does not say what its stages are")

    def notes(self) -> list[str]:
        """What its settings bring that a user may not expect, a line each, for `copra check` and `plan`."""
        return []

    def training_of(self, stage: int) -> Training:
        """The optimization of one stage: `training` with the stage's overrides."""
        changes = self.overrides.get(stage, {})
        lengths = {"steps": None, "epochs": None} if {"steps", "epochs"} & set(changes) else {}
        return Training.model_validate({**self.training.canonical(), **lengths, **changes})

    @model_validator(mode="after")
    def _one_teacher(self) -> "Method":
        if self.distil is not None and not self.distils:
            raise ValueError(
                f"distil: {self.kind} has a way of its own to learn from a teacher; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _legal_overrides(self) -> "Method":
        numbers = sorted(self.stages())
        for stage, changes in self.overrides.items():
            if stage not in numbers:
                raise ValueError(f"overrides: there is no stage {stage}, only {shown(numbers)}")
            unknown = sorted(set(changes) - set(Training.model_fields))
            if unknown:
                keys = cut(", ".join(dotted([key]) for key in unknown))
                raise ValueError(f"overrides: not keys of 'training': {keys}")
            try:
                self.training_of(stage)
            except ValidationError as error:
                lines = [line for problem in error.errors() for line in explain(problem, changes, {})]
                raise ValueError("\n".join(located(f"overrides.{stage}", "\n".join(lines)))) from None
        return self
