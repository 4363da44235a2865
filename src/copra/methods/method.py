"""The base classes of reasoning methods: `Method`, `Stage` and `Layout`.

A method is a step of the config that trains. It is a class of settings that lists the stages of its
training; a stage defines how a row is laid out, which terms its loss has and how the trained checkpoint
answers. Everything else (the loop, decoding, evaluation, cost) is shared.

To add a method: one file with a `Method` (and a subclass of `Stage` where `Stage` does not suffice), one
line in `copra/methods/__init__.py`, and a test. An extra module takes one more line, in
`copra/models/extra_modules.py`. Other packages add methods by entry points (`copra.utils.plugins`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from copra.data.sequences import (
    GenerationSpec,
    LatentInput,
    Markers,
    Sample,
    Thought,
    TokenRow,
    Work,
    lay_out,
)
from copra.methods.losses import (
    CrossEntropy,
    LossTerm,
    LossValues,
    Outputs,
    TeacherDivergence,
    n_supervised,
)
from copra.schema.loop import Loop
from copra.schema.settings import Name, Settings
from copra.schema.training import Distil, Distillation, Training
from copra.utils.problems import cut, dotted, explain, located, shown

if TYPE_CHECKING:
    from torch import Tensor

    from copra.data.batch import Batch
    from copra.methods.reasoning_model import ReasoningModel


class Layout(Settings):
    """The number of steps that a sample leaves out, and the number of latents that replace them."""

    skip: int | None = None
    """Number of steps left out at the front (null: all)."""
    latents: int = 0
    """Number of latents that replace the left-out steps."""
    latents_per_step: int | None = None
    """If set, a row of m steps has at most m times this number of latents (null: no such limit)."""
    markers: bool = False
    """If true, the start and end markers enclose the latents."""
    supervised: int | None = None
    """Number of remaining steps, counted from the end, that are supervised; the others are given (null: all
    are supervised)."""

    def lay_out(self, row: TokenRow, markers: Markers) -> Sample:
        """Return the sample of a row."""
        latents = self.latents
        if self.latents_per_step is not None:
            latents = min(latents, self.latents_per_step * len(row.steps))
        given = 0 if self.supervised is None else max(0, len(row.steps) - self.supervised)
        around = markers if self.markers else None
        return lay_out(row, self.skip, latents, around, pause=markers.latent, given=given)


class Stage(Settings):
    """One resolved stage of a method: everything that its training depends on except the optimization.

    A method with its own loss, extra modules or samples overrides the functions below that differ.
    """

    layouts: tuple[Layout, ...]
    """The layouts that the rows of an epoch draw from; the last one is the layout to be learned, used in
    validation and decoding."""
    weights: tuple[float, ...] = (1.0,)
    """Unnormalized probability of each layout."""
    thought: Thought = "hidden"
    """Input of a latent position: the hidden state before it, or the latent token's embedding."""
    latent_input: LatentInput = "raw"
    """Conversion of a hidden state to an input embedding."""
    distil: Distillation | None = Field(None, exclude_if=lambda value: value is None)
    """Weights and temperature of a teacher's predictions in the loss (null: no teacher). The loss is
    task_weight * the method's own + weight * `TeacherDivergence`."""
    loop: Loop | None = Field(None, exclude_if=lambda value: value is None)
    """Block of layers that is run several times, in training and in decoding (null: every layer is run once).
    """

    dropout: ClassVar[bool] = True
    """True if the model's dropout is on in training."""
    is_scheduled: ClassVar[bool] = False
    """True if `at_step` returns different stages during the training."""
    reads_minds: ClassVar[bool] = False
    """True if the loss reads a teacher's hidden states, so that the teacher must have the student's shape."""

    @property
    def least_steps(self) -> int:
        """The fewest optimizer steps in which the stage goes through all its parts."""
        return 1

    def at_step(self, step: int, total: int) -> "Stage":
        """Return the stage at optimizer step `step` of 1..`total`.

        The optimizer state is reset where the stage changes and the batch before had chain left
        (`has_chain`). The best weights are selected among the validations after the last change.
        """
        return self

    def has_chain(self, row: TokenRow, sample: Sample) -> bool:
        """True if a row's sample still contains some of its steps, for scheduled stages."""
        return len(sample.tokens) > len(row.question) + len(row.answer)

    def lay_out(self, row: TokenRow, markers: Markers, rng: Random | None = None) -> Sample:
        """Return the sample of a row; `rng` samples one of several mixed layouts (None: the last one)."""
        return self.layout_of(row, rng).lay_out(row, markers)

    def layout_of(self, row: TokenRow, rng: Random | None) -> Layout:
        """Return the layout of a row, sampled with `rng` where there are several."""
        if rng is None or len(self.layouts) == 1:
            return self.layouts[-1]
        return rng.choices(self.layouts, self.weights)[0]

    @property
    def draws(self) -> bool:
        """True if a row's sample is drawn again in each epoch."""
        return len(self.layouts) > 1

    def decoding(self, markers: Markers) -> GenerationSpec | None:
        """Return the generation spec of the trained checkpoint (None: it cannot answer yet)."""
        layout = self.layouts[-1]
        return GenerationSpec(
            prefix_ids=(markers.start,) if layout.markers else (),
            latents=layout.latents,
            thought=self.thought,
            latent_token=markers.latent,
            suffix_ids=(markers.end,) if layout.markers else (),
            latent_input=self.latent_input,
            loop=self.loop,
        )

    @property
    def jacobi_iterations(self) -> int:
        """The number of Jacobi iterations over all latents; 0 if they are fed one after another."""
        return 0

    @property
    def needs_teacher(self) -> bool:
        """True if the loss reads a frozen teacher model."""
        return self.distil is not None

    @property
    def copies_pretrained(self) -> bool:
        """True if an extra module starts as a copy of the pretrained model."""
        return False

    @property
    def has_recurrent_latents(self) -> bool:
        """True if the trained checkpoint answers with latents that are hidden states."""
        return self.thought == "hidden" and self.layouts[-1].latents > 0

    @property
    def answers(self) -> bool:
        """True if the trained checkpoint can answer."""
        return True

    def extra_modules(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the extra modules by their names in `copra.models.extra_modules`."""
        return {"projection": {}} if self.latent_input == "projected" else {}

    def frozen(self) -> tuple[str, ...]:
        """Return which of "model" and the extra modules' names are not trained."""
        return ()

    def forward(self, reasoner: "ReasoningModel", batch: "Batch") -> Outputs:
        """Run the passes of the method's own loss over a batch and return their outputs."""
        return {"hidden": self.hidden_states(reasoner, batch)}

    def hidden_states(self, reasoner: "ReasoningModel", batch: "Batch") -> "Tensor":
        """Return final-norm hidden states [B, N, d] of a reasoner, with latents fed as the stage defines."""
        return reasoner.hidden_states(batch, self.thought, self.latent_input, self.jacobi_iterations)

    def own_terms(self) -> list[LossTerm]:
        """Return the terms of the method's own loss."""
        return [CrossEntropy()]

    def pass_workload(self, sample: Sample) -> Iterator[Work]:
        """Yield the work of the passes in `forward` for one sample, with the logits at its labels."""
        yield from self.sequence_workload(sample)

    def sequence_workload(self, sample: Sample) -> Iterator[Work]:
        """Yield the work of reading one sequence as `hidden_states` does, with the logits at its labels.

        Every Jacobi iteration reads the latents once more. Projected latents are projected each time they
        are fed.
        """
        yield Work("model", len(sample.tokens), n_supervised([sample]))
        if sample.n_latents:
            yield from [Work("model", sample.n_latents, past=sample.first_latent)] * self.jacobi_iterations
            if self.thought == "hidden" and self.latent_input == "projected":
                yield Work("projection", sample.n_latents * max(self.jacobi_iterations, 1))

    # What follows is derived from the functions above and holds for all methods.

    @property
    def learns_own_loss(self) -> bool:
        """False if only the teacher's predictions are learned; the cross-entropy is then logged."""
        return self.distil is None or self.distil.task_weight > 0

    def loss_terms(self) -> list[LossTerm]:
        """Return all terms of the loss: the method's own, and a teacher's predictions if it is distilled."""
        if self.distil is None:
            return self.own_terms()
        own = self.own_terms() if self.learns_own_loss else [CrossEntropy()]
        scaled = [replace(term, weight=self.distil.task_weight * term.weight) for term in own]
        taught = TeacherDivergence("distillation", self.distil.weight, self.distil.temperature, self)
        return [*scaled, taught]

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each term of the loss; norms of latents are only logged."""
        return {term.name: term.weight for term in self.loss_terms()}

    def normalizers(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Return the divisor of each term's sum over these samples."""
        return {term.name: term.normalizer(samples) for term in self.loss_terms()}

    def flop_workload(self, samples: Sequence[Sample]) -> Iterator[Work]:
        """Yield the work that the loss on these samples computes, for the FLOPs of the training."""
        read = self.pass_workload if self.learns_own_loss else self.sequence_workload
        for sample in samples:
            yield from read(sample)
        for term in self.loss_terms():
            yield from term.flop_workload(samples)

    def loss(self, reasoner: "ReasoningModel", batch: "Batch") -> LossValues:
        """Return the values of all terms on a batch, each as a sum and a count.

        In validation there are also the norms of `latent_norms`.
        """
        from copra.methods.loss_functions import latent_norms, supervised_logits

        if self.learns_own_loss:
            outputs = self.forward(reasoner, batch)
        else:
            outputs = {"hidden": self.hidden_states(reasoner, batch)}
        if self.distil is not None:
            outputs["logits"] = supervised_logits(reasoner.model, batch, outputs["hidden"])
        values = {term.name: term.compute(reasoner, batch, outputs) for term in self.loss_terms()}
        # In validation only: reading all embeddings in every step would cost more than a small model does.
        if self.thought == "hidden" and "hidden" in outputs and not reasoner.training:
            values |= latent_norms(reasoner.model, batch, outputs["hidden"])
        return values


class Method(Settings):
    """A training step of the config."""

    stage_type: ClassVar[type[Stage]] = Stage
    unprunable: ClassVar[str | None] = None
    """Why no pruning may follow the method, as a clause about it (None: one may)."""
    distils: ClassVar[bool] = True
    """False if the method reads a teacher in its own way, which rules out the setting `distil`."""
    needs_steps: ClassVar[bool] = True
    """False if the method leaves out all steps, so that it can train on a task without any."""
    writes_steps: ClassVar[bool] = False
    """True if the trained model writes its whole chain of thought, so that it can teach iCoT-KD."""

    kind: str
    """Name of the method."""
    task: Name | None = None
    """Name of the task to train on (null: the experiment's)."""
    training: Training
    """Optimization settings of each stage."""
    overrides: dict[int, dict[str, Any]] = Field(default_factory=dict)
    """Values of `training` keys that differ in single stages, by stage number."""
    distil: Distil | None = None
    """Distillation of a teacher's predictions into the model (null: none)."""

    def stages(self) -> Mapping[int, Stage]:
        """Return the stages by number, in order; a method without stages has only stage 0."""
        raise TypeError(f"method {self.kind!r} does not say what its stages are")

    def resolved_stages(self) -> dict[int, Stage]:
        """Return the stages by number, each with the distillation of the method, if it has any."""
        if self.distil is None:
            return dict(self.stages())
        # The teacher belongs to the recipe: stages with equal weights and temperature are the same stage.
        distil = Distillation.model_validate(self.distil.model_dump(include=set(Distillation.model_fields)))
        return {
            number: stage.model_copy(update={"distil": distil}) for number, stage in self.stages().items()
        }

    def notes(self) -> list[str]:
        """Return unexpected effects of the settings, one per line, for `copra check` and `copra plan`."""
        return []

    def training_of(self, stage: int) -> Training:
        """Return the optimization settings of one stage: `training` with the stage's overrides."""
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

    @model_validator(mode="after")
    def _stages_may_stop_early(self) -> "Method":
        for number, stage in self.stages().items():
            if (problem := _early_stop_problem(stage, self.training_of(number))) is not None:
                own = f"overrides.{number}.stop_early"
                key = own if "stop_early" in self.overrides.get(number, {}) else "training.stop_early"
                raise ValueError(f"{key}: stage {number} {problem}. Set {own} to null")
        return self


def _early_stop_problem(stage: Stage, training: Training) -> str | None:
    """Return why a stage cannot end as `training.stop_early` says; None if it can."""
    if training.stop_early is None:
        return None
    if stage.least_steps > 1:
        return f"goes through {stage.least_steps} parts over all its steps, so it must take all of them"
    if training.stop_early.target_accuracy is not None and not stage.answers:
        return "makes a model that cannot answer yet, so there is no accuracy to reach"
    return None
