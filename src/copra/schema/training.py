"""Settings of one training stage, of low-rank adapters and of distillation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copra.schema.settings import MOST_ROWS, MOST_STEPS, Settings

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Fraction of a moment that is kept in each optimizer step."""


class Lora(Settings):
    """Low-rank adapters on every linear layer of the decoder layers (Hu 2021, arXiv 2106.09685).

    Adapters are merged into the weights at the end of the training, so that a checkpoint is a plain model.
    The embedding rows of the latent markers and a method's extra modules are trained in full.
    """

    rank: int = Field(128, ge=1)
    """Rank r of each update."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the updates: each is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability before each adapter."""


class Distillation(Settings):
    """Loss of a student that learns a teacher's predictions (Hinton 2015, arXiv 1503.02531)."""

    weight: float = Field(1.0, gt=0)
    """Weight of the distillation loss T^2 KL(teacher || student), a mean over the supervised positions."""
    temperature: float = Field(1.0, gt=0)
    """Temperature T, by which the logits of teacher and student are divided (section 2)."""
    task_weight: float = Field(0.0, ge=0)
    """Weight of the method's own loss, all terms together. At 0 it is not computed."""


class Distil(Distillation):
    """Distillation from a frozen teacher, with or without the method's own loss, as to heal a pruned model.

    The teacher reads the same sequences as the student. It gets as many latents, in the same way, computed
    from its own hidden states through its own projection. It must have the student's vocabulary, but not its
    shape.
    """

    teacher: str | None = None
    """Recipe, or beginning of one, whose model teaches all stages, such as `llama+cot` (null: the model
    before the prunings that this step follows). A teacher that was never trained with latents cannot use
    them: it guesses the answer without a chain of thought, and the student learns to guess. Name a teacher
    that was trained as this step trains, such as `llama+cot+coconut`; or heal by `cot` first and train with
    latents afterwards."""


class StopEarly(Settings):
    """End of a training before its last step, at the first validation that meets one of the conditions."""

    target_loss: float | None = Field(None, ge=0)
    """Validation loss: the training ends once it is at most this (null: no such condition)."""
    target_accuracy: float | None = Field(None, gt=0, le=1)
    """Share (0 to 1) of the validation rows: the training ends once at least so many are answered right
    (null: no such condition). Every validation then answers them, `validation_rows` of them."""
    patience: int | None = Field(None, ge=1)
    """Number of validations in a row without an improvement of the validation loss, after which the training
    ends, as it has reached a plateau (null: no such condition)."""
    min_delta: float = Field(0.0, ge=0)
    """Amount by which the validation loss must fall below that of the last improvement to count as one."""

    @model_validator(mode="after")
    def _some_condition(self) -> "StopEarly":
        if self.target_loss is None and self.target_accuracy is None and self.patience is None:
            raise ValueError("give at least one of 'target_loss', 'target_accuracy' and 'patience'")
        if self.min_delta and self.patience is None:
            raise ValueError("min_delta: says what 'patience' waits for. Give 'patience', or leave it out")
        return self


class Training(Settings):
    """Optimization of one training stage: AdamW with a warmup, and a choice of the checkpoint to keep."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Number of optimizer steps. Give exactly one of `steps` and `epochs`."""
    epochs: float | None = Field(None, gt=0, le=MOST_STEPS)
    """Number of passes over the train split. Give exactly one of `steps` and `epochs`."""
    batch_size: int = Field(128, ge=1, le=MOST_ROWS)
    """Number of rows per optimizer step (the effective batch size)."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Maximum number of rows per forward pass, if a batch does not fit into memory. Gradients are
    accumulated."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens per forward pass, padding included (rows times the longest row), if a batch
    does not fit into memory: short rows form large micro-batches, long rows small ones. Gradients are
    accumulated (null: no limit but `micro_batch_size`)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warmup: constant, or decayed to zero along a line or a half cosine."""
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """Number of steps in which the learning rate rises from zero."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Length of the warmup as a fraction of all steps. The longer of `warmup_steps` and `warmup_ratio`
    applies."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum norm of the gradient of all weights; a larger gradient is scaled down (clipping)."""
    lora: Lora | None = None
    """Settings of low-rank adapters, which are trained instead of all weights (null: all weights are
    trained)."""
    select_best_by: Literal["loss", "accuracy", "last"] = "loss"
    """Checkpoint to keep: the one with the best loss or accuracy on the validation split, or the last one. If
    the training removes tokens of the chain of thought (`icot_si`), the best of the validations after the
    stage's last removal is kept."""
    num_validations: int = Field(4, ge=1)
    """Number of validations, evenly spaced; the last one is at the end of the training."""
    stop_early: StopEarly | None = Field(None, exclude_if=lambda value: value is None)
    """Conditions that end the training at a validation before its last step, as to heal a pruned model up to
    a target or a plateau (null: all steps are taken). `steps` or `epochs` is then the maximum, over which
    validations are spaced and the learning rate decays; with a `constant` schedule the rate does not depend
    on that maximum, so it suits early stopping better. `select_best_by` holds as without: with `last`, or
    with `accuracy` under a target accuracy, the checkpoint that ended the training is kept."""
    validation_rows: int | None = Field(None, ge=1)
    """Number of validation rows to use, from the start of the split (null: all)."""
    max_tokens: int = Field(1024, ge=8)
    """Maximum sequence length in tokens. Longer train rows are left out and counted in the manifest."""

    @property
    def lora_rank(self) -> int | None:
        """The rank of the adapters, or None if all weights are trained."""
        return self.lora.rank if self.lora else None

    @property
    def needs_accuracy(self) -> bool:
        """True if validations answer questions: accuracy selects the checkpoint, or can end the training."""
        target = None if self.stop_early is None else self.stop_early.target_accuracy
        return self.select_best_by == "accuracy" or target is not None

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps, epochs resolved: the maximum if it may stop early."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # exactly one of the two is given
        return max(1, round(self.epochs * steps_per_epoch))

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
