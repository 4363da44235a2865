"""Pause tokens (Goyal et al. 2023, arXiv 2310.02226, section 3; as a baseline in 2412.06769, section 4.2)."""

from typing import ClassVar, Literal

from pydantic import Field

from copra.methods.method import Layout, Method, Stage
from copra.schema.settings import MOST_LATENTS


class Pause(Method):
    """Train to answer after n copies of one learned token; the loss is on the answer.

    The token is `<|latent|>`, whose embedding is trained; no markers enclose the copies.
    """

    needs_steps: ClassVar[bool] = False

    kind: Literal["pause"]
    """Name of the method."""
    pauses: int = Field(6, ge=1, le=MOST_LATENTS)
    """n: number of copies of the token between question and answer."""

    def stages(self) -> dict[int, Stage]:
        return {0: Stage(layouts=(Layout(skip=None, latents=self.pauses),), thought="embedding")}
