"""The settings of scoring."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from copra.schema.metrics import split_of
from copra.schema.settings import FilePath, Seed, Settings

Objective = Literal["answer", "cot", "latent", "text"]


class Text(Settings):
    """A plain text to score on: exactly one of `file` and `dataset`."""

    file: FilePath | None = None
    """A text file, one passage a line (environment variables such as ${TEXTS} are filled in)."""
    dataset: str | None = None
    """A data set of the Hub."""
    subset: str | None = None
    """Its configuration, where it has several."""
    split: str = "train"
    """Its split."""
    column: str = "text"
    """Its column of texts."""
    revision: str | None = None
    """Branch, tag or commit; give a commit to pin it."""
    max_tokens: int = Field(256, ge=2)
    """Passages are cut off after so many tokens."""

    @model_validator(mode="after")
    def _one_source(self) -> "Text":
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'file' and 'dataset'")
        return self

    @property
    def path(self) -> Path | None:
        """The local file."""
        return None if self.file is None else Path(os.path.expandvars(self.file)).expanduser()


class Gates(Settings):
    """How hard-concrete gates on heads are trained (arXiv 1905.09418; stabilizers of arXiv 2110.03252)."""

    steps: int = Field(300, ge=1)
    """Optimizer steps; the weights of the model stay as they are."""
    batch_size: int = Field(16, ge=1)
    """Calibration rows a step."""
    learning_rate: float = Field(0.1, gt=0)
    """Of the gates; they have no weight decay."""
    target_sparsity: float = Field(0.5, gt=0, lt=1)
    """The part of the gates that is to close."""
    warmup_steps: int = Field(100, ge=0)
    """Steps in which the weight of the sparsity loss rises from 0."""
    seed: Seed = 0
    """Of the gates' noise and the order of rows."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Gates":
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} are more than the {self.steps} steps of the gates, so "
                "the weight of the sparsity loss would never be 1. Lower them"
            )
        return self


class Importance(Settings):
    """How units are scored."""

    rows: int = Field(128, ge=1)
    """Calibration rows, from the start of the train split, or passages of the text."""
    batch_size: int = Field(16, ge=1)
    """Rows a forward pass."""
    objective: Objective = "cot"
    """What is read and where the loss is: on the answer given the steps, on steps and answer, on the answer
    after the model's own latents, or on every token of a text. A pruning can name another one."""
    text: Text | None = None
    """The text behind objective text."""
    validation_rows: int = Field(200, ge=1)
    """Rows of the valid split on which loss and accuracy without a unit are measured."""
    greedy_removals: int | None = Field(None, ge=1)
    """So many layers the greedy searches remove, one after the other (null: as many as the prunings and
    curves that use a search ask for; all that can go where one of them has a budget that is no count)."""
    greedy_protect: list[NonNegativeInt] = Field(default_factory=list)
    """Layers, counted from 0, that they never remove."""
    gates: Gates = Gates()
    """How gates are trained."""

    def objective_of(self, own: Objective | None) -> Objective:
        """The objective of a pruning that names its own, or none."""
        return own or self.objective

    def needed_by(self, scoring: str, objective: Objective) -> dict[str, Any]:
        """The settings that one scoring run depends on."""
        split = split_of(scoring)
        keys = ["batch_size"]
        if split == "train" or objective == "text":
            keys.append("rows")
        if split == "valid":
            keys.append("validation_rows")
        if objective == "text":
            keys.append("text")
        if ".greedy" in scoring:
            keys += ["greedy_removals", "greedy_protect"]
        if scoring.endswith(".gates"):
            keys.append("gates")
        value = self.canonical()
        return {key: value[key] for key in keys}
