"""Settings of importance scoring."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from copra.schema.metrics import reads_passes, split_of
from copra.schema.settings import FilePath, Seed, Settings

Objective = Literal["answer", "cot", "latent", "text"]


class Text(Settings):
    """Plain text for scoring: exactly one of `file` and `dataset`."""

    file: FilePath | None = None
    """Path of a text file, one passage per line; environment variables such as ${TEXTS} are expanded."""
    dataset: str | None = None
    """Name of a data set on the Hub."""
    subset: str | None = None
    """Configuration (subset) of the data set, if it has several."""
    split: str = "train"
    """Split of the data set."""
    column: str = "text"
    """Column of the data set that holds the texts."""
    revision: str | None = None
    """Branch, tag or commit of the data set. A commit pins the data."""
    max_tokens: int = Field(256, ge=2)
    """Maximum length of a passage in tokens; longer ones are truncated."""

    @model_validator(mode="after")
    def _one_source(self) -> "Text":
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'file' and 'dataset'")
        return self

    @property
    def path(self) -> Path | None:
        """The local file with environment variables expanded, or None for a data set."""
        return None if self.file is None else Path(os.path.expandvars(self.file)).expanduser()


class Gates(Settings):
    """Training of hard-concrete gates on heads (arXiv 1905.09418; stabilizers of arXiv 2110.03252)."""

    steps: int = Field(300, ge=1)
    """Number of optimizer steps. Only the gates are trained; the weights of the model are frozen."""
    batch_size: int = Field(16, ge=1)
    """Number of calibration rows per optimizer step."""
    learning_rate: float = Field(0.1, gt=0)
    """Learning rate of the gates, which have no weight decay."""
    target_sparsity: float = Field(0.5, gt=0, lt=1)
    """Target fraction of closed gates."""
    warmup_steps: int = Field(100, ge=0)
    """Number of steps in which the weight of the sparsity loss rises from 0."""
    seed: Seed = 0
    """Seed of the gates' noise and of the order of rows."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Gates":
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} are more than the {self.steps} steps of the gates, so "
                "the weight of the sparsity loss would never be 1. Lower them"
            )
        return self


class Importance(Settings):
    """Settings of importance scoring."""

    rows: int = Field(128, ge=1)
    """Number of calibration rows, from the start of the train split, or of passages of the text."""
    batch_size: int = Field(16, ge=1)
    """Number of rows per forward pass."""
    objective: Objective = "cot"
    """Input and supervised tokens of the scoring loss. answer: the answer, given the steps; cot: steps and
    answer; latent: the answer after the model's own latents; text: every token of a text. A prune step can
    set its own."""
    text: Text | None = None
    """Text for objective text."""
    validation_rows: int = Field(200, ge=1)
    """Number of rows of the valid split on which loss and accuracy without a unit are measured."""
    greedy_removals: int | None = Field(None, ge=1)
    """Number of layers that a greedy search removes, one at a time (null: the largest number that a pruning
    or curve takes from the search; all removable layers if one of their budgets is not a count)."""
    greedy_protect: list[NonNegativeInt] = Field(default_factory=list)
    """Indices of layers, counted from 0, that greedy searches never remove."""
    gates: Gates = Gates()
    """Settings of the training of gates."""

    def objective_of(self, own: Objective | None) -> Objective:
        """Return the objective of a pruning: its own, or the default if it sets none."""
        return own or self.objective

    def needed_by(self, scoring: str, objective: Objective) -> dict[str, Any]:
        """Return the settings that one scoring run depends on, as JSON values."""
        split = split_of(scoring)
        keys = ["batch_size"]
        if split == "train" or objective == "text":
            keys.append("rows")
        if split == "valid":
            keys.append("validation_rows")
        if objective == "text":
            keys.append("text")
        if ".greedy" in scoring and not reads_passes(scoring):
            keys += ["greedy_removals", "greedy_protect"]
        if scoring.endswith(".gates"):
            keys.append("gates")
        value = self.canonical()
        return {key: value[key] for key in keys}
