"""Coconut: chain of continuous thought (Hao et al. 2024, arXiv 2412.06769) and its ablations."""

from typing import Literal

from pydantic import Field

from copra.reasoning.layout import LatentInput
from copra.reasoning.method import Layout, Method, Stage


class Coconut(Method):
    """Replace the steps by latents, one more step a stage (section 3, "Training procedure").

    Stages 0 to K (`max_latent_stage`) leave out as many steps and put `latents_per_step` latents a step
    in their place; a last stage leaves out every step. That makes K+2 stages, each with an optimizer
    of its own. Ablations (section 4.4): `curriculum: false` trains the last stage alone;
    `thought: none` keeps the curriculum without latents and markers; `thought: embedding` feeds the
    learned `<|latent|>` embedding in place of the hidden state ("pause as thought").
    """

    kind: Literal["coconut"]
    """Which method this is."""
    latents_per_step: int = Field(1, ge=1)
    """c: latents for each step that is left out."""
    max_latent_stage: int = Field(3, ge=1)
    """K: the last stage that leaves out one step more; after it all go."""
    first_stage: int = Field(0, ge=0)
    """Where the curriculum begins; 1 when the step before has trained on the whole chain already."""
    pad_latent_to_max: bool = True
    """Whether a row with fewer than K steps gets K*c latents in the last stage all the same."""
    thought: Literal["hidden", "embedding", "none"] = "hidden"
    """What a latent reads: the hidden state before it (the method), or one of the two controls."""
    latent_input: LatentInput = "raw"
    """How a hidden state becomes an input embedding: as it is (the paper), or scaled to the mean norm of
    the embeddings, which a hidden state may exceed a hundred times."""
    curriculum: bool = True
    """False: straight to the last stage, the only one then."""
    stage_mixing: bool = False
    """Draw each sample of stage k from the stages 0..k with weight 1..k+1 (arXiv 2602.22441)."""

    def stages(self) -> dict[int, Stage]:
        final = self.max_latent_stage + 1
        first = min(self.first_stage, final) if self.curriculum else final
        return {number: self._stage(number) for number in range(first, final + 1)}

    def _stage(self, number: int) -> Stage:
        first = 0 if self.stage_mixing and self.curriculum else number
        mixed = range(first, number + 1)
        return Stage(
            layouts=tuple(self._layout(i) for i in mixed),
            weights=tuple(float(i + 1) for i in mixed) if len(mixed) > 1 else (1.0,),
            thought="embedding" if self.thought == "embedding" else "hidden",
            latent_input=self.latent_input,
        )

    def _layout(self, number: int) -> Layout:
        final = number > self.max_latent_stage
        steps = min(number, self.max_latent_stage)
        latent = self.thought != "none"
        return Layout(
            skip=None if final else number,
            latents=steps * self.latents_per_step if latent else 0,
            latents_a_step=self.latents_per_step if final and latent and not self.pad_latent_to_max else None,
            markers=latent,
        )
