"""Scratchpad (Nye et al. 2021, arXiv 2112.00114) with a backward curriculum."""

from typing import ClassVar, Literal

from pydantic import Field

from copra.methods.method import Layout, Method, Stage
from copra.schema.settings import MOST_STAGES


class Scratchpad(Method):
    """Train to write the steps and the answer, from the end of the chain backwards.

    In stage j, all steps but the last `j * steps_per_stage` are part of the prompt, and the loss is on the
    remaining steps and the answer. Stage 0 gives the whole chain and supervises only the answer; every
    further stage gives fewer steps, and the last one gives only the question. Nye et al. train on the whole
    scratchpad at once, which is `curriculum: false`. The checkpoint of any stage answers from the question
    alone.
    """

    writes_steps: ClassVar[bool] = True

    kind: Literal["scratchpad"]
    """Name of the method."""
    max_stage: int = Field(3, ge=1, le=MOST_STAGES)
    """J: index of the last stage, which gives only the question."""
    steps_per_stage: int = Field(1, ge=1)
    """Number of additional steps that each stage supervises."""
    first_stage: int = Field(0, ge=0, le=MOST_STAGES)
    """Index of the first stage of the curriculum."""
    curriculum: bool = True
    """If false, the last stage is the only one."""

    def stages(self) -> dict[int, Stage]:
        first = min(self.first_stage, self.max_stage) if self.curriculum else self.max_stage
        return {number: Stage(layouts=(self._layout(number),)) for number in range(first, self.max_stage + 1)}

    def _layout(self, number: int) -> Layout:
        return Layout(skip=0, supervised=None if number == self.max_stage else number * self.steps_per_stage)
