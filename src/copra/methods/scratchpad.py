"""Scratchpad (Nye et al. 2021, arXiv 2112.00114) with a backward curriculum."""

from typing import Literal

from pydantic import Field

from copra.methods.method import Layout, Method, Stage
from copra.schema.settings import MOST_STAGES


class Scratchpad(Method):
    """Write the steps and the answer, learned from the end backwards.

    In stage j the steps but the last `j * steps_per_stage` are a part of the prompt, and the loss is on what
    remains and the answer: stage 0 gives the whole chain and asks for the answer alone, and every stage
    takes more from the end of the given chain. The last stage gives the question alone. Nye et al. train
    on the whole scratchpad at once, which is `curriculum: false`. The checkpoint of any stage answers from
    the question alone.
    """

    kind: Literal["scratchpad"]
    """Which method this is."""
    max_stage: int = Field(3, ge=1, le=MOST_STAGES)
    """J: the last stage, which gives the question alone."""
    steps_per_stage: int = Field(1, ge=1)
    """How many steps more each stage asks for."""
    first_stage: int = Field(0, ge=0, le=MOST_STAGES)
    """Where the curriculum begins."""
    curriculum: bool = True
    """False: straight to the last stage, the only one then."""

    def stages(self) -> dict[int, Stage]:
        first = min(self.first_stage, self.max_stage) if self.curriculum else self.max_stage
        return {number: Stage(layouts=(self._layout(number),)) for number in range(first, self.max_stage + 1)}

    def _layout(self, number: int) -> Layout:
        return Layout(skip=0, supervised=None if number == self.max_stage else number * self.steps_per_stage)
