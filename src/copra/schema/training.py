"""The settings of one training stage, and of a teacher that any training may have."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copra.schema.settings import MOST_ROWS, MOST_STEPS, Settings

Decay = Annotated[float, Field(ge=0, lt=1)]
"""The part of a moment that is kept in each optimizer step."""


class Lora(Settings):
    """Low-rank adapters on every linear layer of the blocks (Hu 2021, arXiv 2106.09685).

    They are merged into the weights when the training ends, so that a checkpoint is a plain model. Rows of
    the latent markers and a method's own parts are trained in full beside them.
    """

    rank: int = Field(128, ge=1)
    """r: rank of each update."""
    alpha: float = Field(32.0, gt=0)
    """Updates are scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before each adapter."""


class Distillation(Settings):
    """What a loss is made of where a teacher's predictions are learned (Hinton 2015, arXiv 1503.02531)."""

    weight: float = Field(1.0, gt=0)
    """Weight of the distillation, T^2 KL(teacher || student), a mean over the supervised positions."""
    temperature: float = Field(1.0, gt=0)
    """T: the logits of both are divided by it (section 2)."""
    task_weight: float = Field(0.0, ge=0)
    """Weight of the method's own loss beside it. At 0 that is not computed, whatever it consists of."""


class Distil(Distillation):
    """Learn what a frozen teacher predicts, alone or beside the method's own loss: so a pruned model heals.

    The teacher reads the sequences that the student reads. Latents are fed to it in the same number and
    the same way, made of its own hidden states through its own projection. It need not have the student's
    shape, but its vocabulary.
    """

    teacher: str | None = None
    """A recipe or the beginning of one, such as `llama+cot`, whose model teaches all stages (null: the model
    before the prunings that this step follows). Of latents, a teacher that was never trained with them
    makes nothing: it then guesses the answer without a chain of thought, and so the student will. Name one
    that was trained as this step trains, such as `llama+cot+coconut`; or heal by `cot` first, and train
    with latents after that."""


class Training(Settings):
    """How a stage is optimized: AdamW with a warm-up, greedy choices made on the validation split."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Optimizer steps. Exactly one of `steps` and `epochs`."""
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    """Passes over the train split. Exactly one of `steps` and `epochs`."""
    batch_size: int = Field(128, ge=1, le=MOST_ROWS)
    """Rows an optimizer step (the effective batch)."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows a forward pass, when the batch does not fit the memory; gradients are accumulated."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens a forward pass, padding among them (rows times the longest row), when the batch does not fit the
    memory: short rows go many together, long ones few. Gradients are accumulated (null: no limit but
    `micro_batch_size`)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: kept, or brought to zero along a line or a half cosine."""
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """Steps in which the learning rate rises from zero."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """The same as a part of all steps; the longer of the two counts."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights (null: all weights)."""
    select_best_by: Literal["loss", "accuracy", "last"] = "loss"
    """Which checkpoint is kept: the best on the validation split, or the last. Where tokens of the chain go
    while training (`icot_si`), it is the best of the validations after the stage's last removal."""
    num_validations: int = Field(4, ge=1)
    """How often, evenly spaced and at the end, the validation split is looked at."""
    validation_rows: int | None = Field(None, ge=1)
    """Only the first so many validation rows (null: all)."""
    max_tokens: int = Field(1024, ge=8)
    """The longest sequence in tokens; longer train rows are left out and counted in the manifest."""

    @property
    def lora_rank(self) -> int | None:
        """The rank of adapters, or None where all weights are trained."""
        return self.lora.rank if self.lora else None

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"'batch_size' {self.batch_size} is not a multiple of 'micro_batch_size' "
                f"{self.micro_batch_size}"
            )
        if self.steps is not None and self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} are more than the {self.steps} steps of the training, so "
                "the learning rate would never reach its peak. Lower them"
            )
        return self
