"""Coconut: chain of continuous thought (Hao et al. 2024, arXiv 2412.06769) and its ablations."""

from dataclasses import replace
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from copra.data.sequences import LatentInput, Markers, Sample, TokenRow
from copra.methods.method import Layout, Method, Stage
from copra.methods.sim_cot import AuxiliaryDecoder, ExplainedStage, check_weighed
from copra.schema.settings import MOST_LATENTS, MOST_STAGES


class CoconutStage(ExplainedStage):
    """A stage of Coconut, which may draw the layouts of other stages and may train an auxiliary decoder."""

    uniform: tuple[Layout, ...] = ()
    """The layouts of all stages, if `uniform_prob` draws from them; otherwise empty."""
    uniform_prob: float = 0.0
    """Probability that a row of m steps takes the layout of a stage drawn uniformly from 0..m."""
    latents_per_step: int = 1
    """c: number of latents per step."""

    def layout_of(self, row: TokenRow, rng: Random | None) -> Layout:
        if rng is not None and self.uniform_prob and rng.random() < self.uniform_prob:
            return self.uniform[min(rng.randrange(len(row.steps) + 1), len(self.uniform) - 1)]
        return super().layout_of(row, rng)

    def lay_out(self, row: TokenRow, markers: Markers, rng: Random | None = None) -> Sample:
        layout = self.layout_of(row, rng)
        sample = layout.lay_out(row, markers)
        if self.auxiliary_decoder is None:
            return sample
        groups = sample.n_latents // self.latents_per_step
        texts = self.auxiliary_decoder.targets(row.steps[: layout.skip], groups, row.answer)
        return replace(sample, explained=texts, latents_per_text=self.latents_per_step)

    @property
    def groups(self) -> int:
        return max(layout.latents for layout in (*self.layouts, *self.uniform)) // self.latents_per_step

    @property
    def draws(self) -> bool:
        return super().draws or self.uniform_prob > 0


class Coconut(Method):
    """Replace the steps by latents, one more step per stage (section 3, "Training procedure").

    Stage k of 0 to K (`max_latent_stage`) replaces the first k steps by `latents_per_step` latents per step;
    a last stage leaves out every step. That makes K+2 stages, each with its own optimizer. Ablations
    (section 4.4): `curriculum: false` trains only the last stage; `thought: none` keeps the curriculum
    without latents and markers; `thought: embedding` feeds the learned `<|latent|>` embedding in place of
    the hidden state ("pause as thought").
    """

    stage_type: ClassVar[type[Stage]] = CoconutStage

    kind: Literal["coconut"]
    """Name of the method."""
    latents_per_step: int = Field(1, ge=1, le=MOST_LATENTS)
    """c: number of latents per left-out step."""
    max_latent_stage: int = Field(3, ge=1, le=MOST_STAGES)
    """K: index of the last stage that leaves out one more step; the stage after it leaves out all steps."""
    first_stage: int = Field(0, ge=0, le=MOST_STAGES)
    """Index of the first stage of the curriculum; 1 if the step before has trained on the whole chain."""
    pad_latent_to_max: bool = True
    """If true, a row with fewer than K steps also gets K*c latents in the last stage. If false, a row of m
    steps trains on min(m, K)*c latents and is still answered with K*c, since m is not known then (the
    reference code reads it from the test set): short rows are then answered with more latents than they
    trained on."""
    thought: Literal["hidden", "embedding", "none"] = "hidden"
    """Input of a latent position. hidden: the hidden state before it (the method). embedding: the learned
    `<|latent|>` embedding (control). none: no latents and markers at all (control)."""
    latent_input: LatentInput = "raw"
    """Conversion of a hidden state to an input embedding. raw: none (the paper). scaled: to the mean norm of
    the embeddings, which a hidden state may exceed a hundred times. projected: a learned projection
    (CODI's)."""
    curriculum: bool = True
    """If false, the last stage is the only one."""
    stage_mixing: bool = False
    """If true, each sample of stage k takes the layout of a stage of 0..k, drawn with weights 1..k+1
    (arXiv 2602.22441)."""
    uniform_prob: float = Field(0.0, ge=0, le=1)
    """Probability that a row of m steps instead takes the layout of a stage drawn uniformly from 0..m."""
    auxiliary_decoder: AuxiliaryDecoder | None = None
    """Auxiliary decoder that is trained to predict each step from its latents (SIM-CoT; null: none). With
    `thought: embedding` it reads the hidden states that would become the latents: the control that is
    supervised in the same way, but does not feed them back."""

    @model_validator(mode="after")
    def _explains_latents(self) -> "Coconut":
        check_weighed(self.auxiliary_decoder, self.distil)
        if self.auxiliary_decoder is not None and self.thought == "none":
            raise ValueError("auxiliary_decoder: without latents (thought: none) there is nothing to explain")
        if self.auxiliary_decoder is not None and self.auxiliary_decoder.next_latent:
            raise ValueError(
                "auxiliary_decoder.next_latent: Coconut feeds every latent that predicts a step; leave it out"
            )
        if self.latent_input == "projected" and self.thought != "hidden":
            raise ValueError("latent_input: there is no hidden state to project (thought: hidden)")
        return self

    def notes(self) -> list[str]:
        if self.pad_latent_to_max or self.thought == "none":
            return []
        return [
            "pad_latent_to_max: false trains the last stage on min(m, K)*c latents for a row of m steps, and "
            f"every question is answered with K*c = {self.max_latent_stage * self.latents_per_step}"
        ]

    def stages(self) -> dict[int, Stage]:
        final = self.max_latent_stage + 1
        first = min(self.first_stage, final) if self.curriculum else final
        return {number: self._stage(number) for number in range(first, final + 1)}

    def _stage(self, number: int) -> CoconutStage:
        first = 0 if self.stage_mixing and self.curriculum else number
        mixed = range(first, number + 1)
        uniform = range(self.max_latent_stage + 2) if self.uniform_prob else ()
        return CoconutStage(
            layouts=tuple(self._layout(i) for i in mixed),
            weights=tuple(float(i + 1) for i in mixed) if len(mixed) > 1 else (1.0,),
            thought="embedding" if self.thought == "embedding" else "hidden",
            latent_input=self.latent_input,
            uniform=tuple(self._layout(i) for i in uniform),
            uniform_prob=self.uniform_prob,
            auxiliary_decoder=self.auxiliary_decoder,
            latents_per_step=self.latents_per_step,
        )

    def _layout(self, number: int) -> Layout:
        final = number > self.max_latent_stage
        steps = min(number, self.max_latent_stage)
        latent = self.thought != "none"
        return Layout(
            skip=None if final else number,
            latents=steps * self.latents_per_step if latent else 0,
            latents_per_step=self.latents_per_step
            if final and latent and not self.pad_latent_to_max
            else None,
            markers=latent,
        )
