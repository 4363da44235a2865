"""What a reasoning method is (no torch).

A method is a step of the config that trains. It is a class of settings that says of which stages its
training consists; a stage says how a row is laid out, how the loss is taken and how the trained
checkpoint answers. Everything else (the loop, decoding, evaluation, cost) is shared.

To add a method: one file with a `Method` (and a `Stage` of its own where `Stage` does not do), one line
in `copra/reasoning/__init__.py`, and a test.
"""

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from copra.reasoning.layout import Decoding, LatentInput, Markers, Sample, Thought, TokenRow, lay_out
from copra.settings import Name, Settings
from copra.training.settings import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from copra.reasoning.forward import Batch


class Layout(Settings):
    """Which steps are left out of a sample and how many latents stand in their place."""

    skip: int | None = None
    """So many steps from the front are left out (null: all)."""
    latents: int = 0
    """Latents between the markers."""
    latents_a_step: int | None = None
    """When set, a row of m steps has at most so many latents times m."""
    markers: bool = False
    """Whether the markers stand around the latents."""


class Stage(Settings):
    """One stage of a method, resolved: all that its training depends on besides the optimisation."""

    layouts: tuple[Layout, ...]
    """One layout, or several that the rows of an epoch are drawn from; the last one is what is learned."""
    weights: tuple[float, ...] = (1.0,)
    """How likely each layout is, up to a common factor."""
    thought: Thought = "hidden"
    """What a latent position reads."""
    latent_input: LatentInput = "raw"
    """How a hidden state becomes an input embedding."""

    def lay_out(self, row: TokenRow, markers: Markers, draw: Random | None = None) -> Sample:
        """The sample of a row; `draw` decides where several layouts are mixed (None: the last one)."""
        layout = self.layouts[-1]
        if draw is not None and len(self.layouts) > 1:
            layout = draw.choices(self.layouts, self.weights)[0]
        latents = layout.latents
        if layout.latents_a_step is not None:
            latents = min(latents, layout.latents_a_step * len(row.steps))
        return lay_out(row, layout.skip, latents, markers if layout.markers else None)

    def decoding(self, markers: Markers) -> Decoding:
        """How the trained checkpoint answers."""
        layout = self.layouts[-1]
        return Decoding(
            before=(markers.start,) if layout.markers else (),
            latents=layout.latents,
            thought=self.thought,
            latent_token=markers.latent,
            after=(markers.end,) if layout.markers else (),
            latent_input=self.latent_input,
        )

    def loss(self, model: "nn.Module", batch: "Batch") -> "tuple[Tensor, Tensor]":
        """Sum of the cross-entropy over the batch's supervised positions, and their number."""
        from copra.reasoning.forward import cross_entropy

        return cross_entropy(model, batch, self.thought, self.latent_input)


class Method(Settings):
    """A training step of the config."""

    stage_type: ClassVar[type[Stage]] = Stage

    kind: str
    """Which method this is."""
    task: Name | None = None
    """The task that it trains on (null: the experiment's)."""
    training: Training
    """How each stage is optimised."""
    overrides: dict[int, dict[str, Any]] = Field(default_factory=dict)
    """Keys of `training` that differ in single stages, by stage number."""

    def stages(self) -> Mapping[int, Stage]:
        """The stages by their number, in order; a method that is not staged has the stage 0 alone."""
        raise TypeError(f"method {self.kind!r} does not say what its stages are")

    def training_of(self, stage: int) -> Training:
        """The optimisation of one stage: `training` with the stage's overrides."""
        changes = self.overrides.get(stage, {})
        lengths = {"steps": None, "epochs": None} if {"steps", "epochs"} & set(changes) else {}
        return Training.model_validate({**self.training.canonical(), **lengths, **changes})

    @model_validator(mode="after")
    def _legal_overrides(self) -> "Method":
        numbers = sorted(self.stages())
        for stage, changes in self.overrides.items():
            if stage not in numbers:
                raise ValueError(f"overrides: there is no stage {stage}, only {numbers}")
            unknown = set(changes) - set(Training.model_fields)
            if unknown:
                raise ValueError(f"overrides: not keys of 'training': {', '.join(sorted(unknown))}")
            try:
                self.training_of(stage)
            except ValidationError as error:
                fault = error.errors()[0]
                key = ".".join(map(str, ("overrides", stage, *fault["loc"])))
                raise ValueError(f"{key}: {fault['msg'].removeprefix('Value error, ')}") from None
        return self
