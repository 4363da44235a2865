"""Coconut: chain of continuous thought (Hao et al. 2024, arXiv 2412.06769) and its ablations."""

from dataclasses import replace
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from copra.data.sequences import LatentInput, Markers, Sample, TokenRow
from copra.methods.method import Layout, Method, Stage
from copra.methods.sim_cot import ExplainedStage, Explaining, check_weighed
from copra.schema.settings import MOST_LATENTS, MOST_STAGES


class CoconutStage(ExplainedStage):
    """A stage of Coconut, which may draw any other stage for a row, and may explain its latents."""

    uniform: tuple[Layout, ...] = ()
    """The layouts of all stages, where some are drawn whatever the stage."""
    uniform_prob: float = 0.0
    """How likely a row is laid out as a stage from 0..m for its m steps, each as likely as the others."""
    latents_per_step: int = 1
    """c: so many latents stand for a step."""

    def layout_of(self, row: TokenRow, draw: Random | None) -> Layout:
        if draw is not None and self.uniform_prob and draw.random() < self.uniform_prob:
            return self.uniform[min(draw.randrange(len(row.steps) + 1), len(self.uniform) - 1)]
        return super().layout_of(row, draw)

    def lay_out(self, row: TokenRow, markers: Markers, draw: Random | None = None) -> Sample:
        layout = self.layout_of(row, draw)
        sample = layout.lay_out(row, markers)
        if self.explaining is None:
            return sample
        groups = sample.n_latents // self.latents_per_step
        texts = self.explaining.told(row.steps[: layout.skip], groups, row.answer)
        return replace(sample, explained=texts, latents_per_text=self.latents_per_step)

    @property
    def groups(self) -> int:
        return max(layout.latents for layout in (*self.layouts, *self.uniform)) // self.latents_per_step

    @property
    def draws(self) -> bool:
        return super().draws or self.uniform_prob > 0


class Coconut(Method):
    """Replace the steps by latents, one more step a stage (section 3, "Training procedure").

    Stages 0 to K (`max_latent_stage`) leave out as many steps and put `latents_per_step` latents a step
    in their place; a last stage leaves out every step. That makes K+2 stages, each with an optimizer
    of its own. Ablations (section 4.4): `curriculum: false` trains the last stage alone;
    `thought: none` keeps the curriculum without latents and markers; `thought: embedding` feeds the
    learned `<|latent|>` embedding in place of the hidden state ("pause as thought").
    """

    stage_type: ClassVar[type[Stage]] = CoconutStage

    kind: Literal["coconut"]
    """Which method this is."""
    latents_per_step: int = Field(1, ge=1, le=MOST_LATENTS)
    """c: latents for each step that is left out."""
    max_latent_stage: int = Field(3, ge=1, le=MOST_STAGES)
    """K: the last stage that leaves out one step more; after it all go."""
    first_stage: int = Field(0, ge=0, le=MOST_STAGES)
    """Where the curriculum begins; 1 when the step before has trained on the whole chain already."""
    pad_latent_to_max: bool = True
    """Whether a row with fewer than K steps gets K*c latents in the last stage all the same. If not, a row of
    m steps trains on min(m, K)*c latents, and is still answered with K*c, since m is not known then (the
    reference code looks it up in the test set): short answers then have more latents than were trained."""
    thought: Literal["hidden", "embedding", "none"] = "hidden"
    """What a latent reads: the hidden state before it (the method), or one of the two controls."""
    latent_input: LatentInput = "raw"
    """How a hidden state becomes an input embedding: as it is (the paper), scaled to the mean norm of the
    embeddings, which a hidden state may exceed a hundred times, or through a learned projection (CODI's)."""
    curriculum: bool = True
    """False: straight to the last stage, the only one then."""
    stage_mixing: bool = False
    """Draw each sample of stage k from the stages 0..k with weight 1..k+1 (arXiv 2602.22441)."""
    uniform_prob: float = Field(0.0, ge=0, le=1)
    """With this probability a row of m steps is laid out as a stage drawn evenly from 0..m instead."""
    explaining: Explaining | None = None
    """Also train a decoder to tell each step from its latents (SIM-CoT; null: do not)."""

    @model_validator(mode="after")
    def _explains_latents(self) -> "Coconut":
        check_weighed(self.explaining, self.distil)
        if self.explaining is not None and self.thought != "hidden":
            raise ValueError(
                "explaining: only latents that are hidden states can be explained (thought: hidden)"
            )
        if self.explaining is not None and self.explaining.next_latent:
            raise ValueError(
                "explaining.next_latent: Coconut feeds every latent that tells a step; leave it out"
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
            explaining=self.explaining,
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
