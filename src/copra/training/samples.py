"""The samples of a training: rows as a stage lays them out, and the batches of its optimizer steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import NamedTuple

from copra.data.sequences import Markers, Sample, TokenRow
from copra.methods.method import Stage
from copra.schema.training import Training
from copra.training.batches import epoch_batches
from copra.utils.errors import CopraError


class Batch(NamedTuple):
    """The samples of optimizer step `step`; `restarts`: the optimizer forgets its moments before the step."""

    step: int
    samples: list[Sample]
    restarts: bool


@dataclass
class Samples:
    """The samples of a stage's training, as a function of the seed: a resumed run gets the same."""

    stage: Stage
    training: Training
    rows: Sequence[TokenRow]
    validation_rows: Sequence[TokenRow]
    markers: Markers
    seed: int

    @cached_property
    def first(self) -> list[Sample]:
        """The samples of epoch 0, cached: to lay out many rows takes seconds."""
        return self.of_epoch(0)

    def of_epoch(self, epoch: int) -> list[Sample]:
        """Return the samples of an epoch that fit in `max_tokens`.

        Raises:
            CopraError: none fits.
        """
        rng = Random(f"layouts {self.seed} {epoch}")
        return self._fitting([self.stage.lay_out(row, self.markers, rng) for row in self.rows], "train")

    @cached_property
    def validation(self) -> list[Sample]:
        """The samples of the validation split that fit in `max_tokens`."""
        samples = [self.stage.lay_out(row, self.markers) for row in self.validation_rows]
        return self._fitting(samples, "validation")

    def _fitting(self, samples: Sequence[Sample], split: str) -> list[Sample]:
        """Return the samples of at most `max_tokens` tokens."""
        fitting = [sample for sample in samples if sample.length <= self.training.max_tokens]
        if not fitting:
            raise CopraError(
                f"no {split} row fits training.max_tokens = {self.training.max_tokens} tokens; the shortest "
                f"has {min((sample.length for sample in samples), default=0)}. Raise it, or train on "
                "another task."
            )
        return fitting

    def total_steps(self) -> int:
        """Return the number of optimizer steps of the stage: the maximum if it may stop early.

        Raises:
            CopraError: they are fewer than the parts of a scheduled stage.
        """
        total = self.training.total_steps(math.ceil(len(self.first) / self.training.batch_size))
        if total < self.stage.least_steps:
            raise CopraError(
                f"training: this stage moves on with each of {self.stage.least_steps} parts of its training, "
                f"and {total} optimizer steps are fewer. Raise training.steps or training.epochs."
            )
        return total

    def batches(self, done: int = 0) -> Iterator[Batch]:
        """Yield the batches of the steps after step `done`.

        Samples are drawn again in each epoch if layouts are mixed, and in each batch if the stage is
        scheduled.
        """
        rows = {row.id: row for row in self.rows} if self.stage.is_scheduled else {}
        total = self.total_steps()
        step, epoch, samples = 0, 0, self.first
        before, chain_was_left = self.stage.at_step(1, total), False
        while step < total:
            if self.stage.draws and epoch:
                samples = self.of_epoch(epoch)
            for batch in epoch_batches(samples, self.training.batch_size, self.seed, epoch):
                step += 1
                if step > total:
                    break
                if step < done:
                    continue
                restarts = False
                # A resumed training also needs the batch before its first step, for `chain_was_left`.
                if self.stage.is_scheduled:
                    stage, rng = self.stage.at_step(step, total), Random(f"layouts {self.seed} step {step}")
                    batch = [stage.lay_out(rows[sample.id], self.markers, rng) for sample in batch]
                    restarts = stage != before and chain_was_left
                    before = stage
                    chain_was_left = any(stage.has_chain(rows[sample.id], sample) for sample in batch)
                if step > done:
                    yield Batch(step, batch, restarts)
            epoch += 1
