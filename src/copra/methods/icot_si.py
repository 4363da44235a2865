"""iCoT-SI: internalize the chain of thought step by step (Deng et al. 2024, arXiv 2405.14838)."""

import math
from dataclasses import replace
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from copra.data.sequences import Markers, Sample, TokenRow
from copra.methods.method import Layout, Method, Stage
from copra.schema.settings import MOST_STAGES


class Removal(Stage):
    """A stage of the removal.

    It leaves out `first` to `last` tokens of the chain, one more in each equal part of its training.
    """

    layouts: tuple[Layout, ...] = (Layout(skip=0),)
    first: int
    """Number of tokens left out when the stage begins."""
    last: int | None
    """Number of tokens left out when the stage ends (null: all tokens in the whole stage)."""
    side: Literal["left", "right"] = "left"
    """End of the chain at which tokens are removed."""
    smoothing: float | None = None
    """lambda: o more tokens are removed with probability (1 - exp(-lambda)) exp(-lambda o) (null: none)."""

    is_scheduled: ClassVar[bool] = True

    @property
    def least_steps(self) -> int:
        return 1 if self.last is None else self.last - self.first + 1

    def at_step(self, step: int, total: int) -> "Removal":
        if self.last is None:
            return self
        now = self.first + (step - 1) * (self.last - self.first + 1) // total
        return self.model_copy(update={"first": now, "last": now})

    def lay_out(self, row: TokenRow, markers: Markers, rng: Random | None = None) -> Sample:
        """Return the sample of a row: at the beginning of the stage if there is an `rng`, else at its end.

        Smoothing applies only to a stage at one optimizer step, see `at_step`.
        """
        chain = [token for step in row.steps for token in step]
        gone = len(chain) if self.last is None else (self.last if rng is None else self.first)
        if rng is not None and self.first == self.last and self.smoothing is not None:
            # Inverse transform sampling of the geometric distribution of o.
            gone += math.floor(-math.log(1.0 - rng.random()) / self.smoothing)
        gone = min(gone, len(chain))
        kept = chain[gone:] if self.side == "left" else chain[: len(chain) - gone]
        return super().lay_out(replace(row, steps=[kept]), markers)


class IcotSi(Method):
    """Remove the chain token by token during training, until the model answers without it (section 3).

    The schedule is split into stages of `tokens_per_stage` tokens, so that each has a checkpoint. Stage i
    begins with i * `tokens_per_stage` tokens left out and ends with one fewer than the next stage begins
    with, in equal parts of its training, whose length `training` gives. With `tokens_per_stage: 8` and
    `epochs: 1` that is the published delta = 8 tokens per epoch. Each removal while chain is left resets the
    optimizer state. The last stage leaves out the whole chain.
    """

    stage_type: ClassVar[type[Stage]] = Removal

    kind: Literal["icot_si"]
    """Name of the method."""
    tokens_per_stage: int = Field(8, ge=1)
    """Number of tokens removed per stage."""
    remove_all_beyond: int = Field(39, ge=1)
    """Number of removed tokens after which the whole chain is removed."""
    side: Literal["left", "right"] = "left"
    """End of the chain at which tokens are removed."""
    smoothing: float | None = Field(4.0, gt=0)
    """lambda of removal smoothing: o additional tokens are removed with probability
    (1 - exp(-lambda)) exp(-lambda o) (null: no smoothing)."""

    @field_validator("remove_all_beyond")
    @classmethod
    def _not_too_many_stages(cls, value: int, info: ValidationInfo) -> int:
        # Runs before any check of the whole method, which would create the stages.
        if value > MOST_STAGES * info.data.get("tokens_per_stage", 1):
            raise ValueError(f"makes more than {MOST_STAGES} stages. Lower it, or raise tokens_per_stage")
        return value

    def stages(self) -> dict[int, Stage]:
        firsts = range(0, self.remove_all_beyond, self.tokens_per_stage)
        chunks: dict[int, Stage] = {
            number: self._stage(first, min(first + self.tokens_per_stage, self.remove_all_beyond) - 1)
            for number, first in enumerate(firsts)
        }
        return chunks | {len(chunks): self._stage(0, None)}

    def _stage(self, first: int, last: int | None) -> Removal:
        return Removal(first=first, last=last, side=self.side, smoothing=self.smoothing)
