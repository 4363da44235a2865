"""Validations during a training: losses, the choice of the best weights, and the end before the last step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from copra.data.sequences import Sample
from copra.methods.method import Stage
from copra.methods.reasoning_model import ReasoningModel
from copra.schema.training import Training
from copra.training.progress import Progress
from copra.training.state import full_state_dict, load_tensors
from copra.training.step import evaluate_loss
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import file_sha256, replacing

BEST = "best.safetensors"
ALL_STEPS = "all steps"
"""The reason for the end of a training that no condition has ended."""


@dataclass
class Validation:
    """Validates the model of a training, and keeps the best weights in the folder `state`.

    `samples` are those of the validation split that fit, padded with token `pad` in a batch; `total` is the
    number of optimizer steps, or the maximum with early stopping. `accuracy` decodes the split and returns
    the share of right answers; it is called only if accuracy selects the weights or can end the training. The
    best step so far is recorded in `progress`.
    """

    stage: Stage
    training: Training
    samples: Sequence[Sample]
    pad: int
    total: int
    state: Path
    accuracy: Callable[[], float]
    progress: Progress
    stop_reason: str | None = field(default=None, init=False)
    """The condition that the last validation has met, which ends the training (None: none)."""

    @cached_property
    def steps(self) -> frozenset[int]:
        """The optimizer steps that a validation follows, evenly spaced; the last one is `total`."""
        number = self.training.num_validations
        return frozenset(math.ceil(self.total * (i + 1) / number) for i in range(number))

    @property
    def selects_by(self) -> str:
        """The criterion for the best checkpoint: never accuracy if the model cannot answer yet."""
        by = self.training.select_best_by
        return "loss" if by == "accuracy" and not self.stage.answers else by

    @property
    def selected(self) -> dict[str, Any]:
        """The selected step with its criterion and value, for the manifest, at the end of the training."""
        assert self.progress.best_value is not None, "the last step validates"
        value = abs(self.progress.best_value)
        return {"by": self.selects_by, "step": self.progress.best_step, "value": value}

    def run(self, loss_module: nn.Module, reasoner: ReasoningModel, step: int) -> dict[str, float]:
        """Return the losses after a step, and the accuracy if it is needed.

        Save the weights if they are the best so far, and set `stop_reason` if the training ends here. All
        processes must call it; they get the same values.

        Raises:
            CopraError: the loss is not finite.
        """
        found = self._losses(loss_module, step)
        if self.training.needs_accuracy and self.stage.answers:
            found["validation_accuracy"] = self.accuracy()
        by_accuracy = self.selects_by == "accuracy"
        value = found["validation_accuracy"] if by_accuracy else -found["validation_loss"]
        self._select(value, reasoner, step)
        self.stop_reason = self._stop_reason(found["validation_loss"], found.get("validation_accuracy"))
        return found

    def ending(self, step: int) -> dict[str, Any]:
        """Return the last step, and with early stopping the maximum and the reason, for the manifest."""
        if self.training.stop_early is None:
            return {"steps": step}
        return {"steps": step, "max_steps": self.total, "stop_reason": self.stop_reason or ALL_STEPS}

    def load_best(self, reasoner: ReasoningModel) -> None:
        """Load the weights that were best on the validation split. All processes must call it.

        Raises:
            CopraError: the file does not contain the selected weights, or cannot be read.
        """
        processes.wait()
        file, anew = self.state / BEST, f"Delete {self.state} and run again: the stage starts anew."
        try:
            if file_sha256(file) != self.progress.best_sha256:
                raise CopraError(
                    f"{file}: not the weights that were chosen after step {self.progress.best_step} (the "
                    f"checksum differs), so another process wrote here too, or the disk lost some. {anew}"
                )
            load_tensors(reasoner, load_file(file))
        except (OSError, SafetensorError) as error:
            raise CopraError(
                f"{file}: the best weights of this training cannot be read ({error}). {anew}"
            ) from None

    def _losses(self, loss_module: nn.Module, step: int) -> dict[str, float]:
        """Return the loss on the validation split with its terms, if there are several, and other means."""
        size = self.training.micro_batch_size or math.ceil(self.training.batch_size / processes.world_size())
        tokens = self.training.micro_batch_tokens
        values = evaluate_loss(loss_module, self.samples, pad=self.pad, size=size, tokens=tokens)
        weights = self.stage.loss_weights()
        loss = sum(weight * values[name] for name, weight in weights.items())
        if not math.isfinite(loss):
            raise CopraError(
                f"step {step}: validation loss {loss:.4g}: the training has broken down. Lower "
                "training.learning_rate or raise training.warmup_steps."
            )
        found = {"validation_loss": loss}
        found |= {name: value for name, value in values.items() if name not in weights}
        if len(weights) > 1:
            found |= {f"validation_{name}": values[name] for name in weights}
        return found

    def _stop_reason(self, loss: float, accuracy: float | None) -> str | None:
        """Return the first condition of early stopping that a validation meets, or None."""
        stop = self.training.stop_early
        if stop is None:
            return None
        self.progress.count_validation(loss, stop.min_delta)
        if stop.target_loss is not None and loss <= stop.target_loss:
            return "target loss"
        if stop.target_accuracy is not None and accuracy is not None and accuracy >= stop.target_accuracy:
            return "target accuracy"
        if stop.patience is not None and self.progress.not_improved >= stop.patience:
            return "plateau"
        return None

    def _select(self, value: float, reasoner: ReasoningModel, step: int) -> None:
        """Record a step, and save its weights, if its `value` is the highest so far.

        If the last weights are kept, every step is recorded, and none is saved.
        """
        if self.selects_by == "last":
            self.progress.best_step, self.progress.best_value = step, value
            return
        # Removing tokens lowers accuracy, so weights from before a removal would always be selected.
        if self.stage.at_step(step, self.total) != self.stage.at_step(self.total, self.total):
            return
        if self.progress.best_value is not None and value <= self.progress.best_value:
            return
        self.progress.best_step, self.progress.best_value = step, value
        tensors, sha256 = full_state_dict(reasoner), None
        if processes.rank() == 0:
            with replacing(self.state / BEST) as temporary:
                save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
                sha256 = file_sha256(temporary)
        self.progress.best_sha256 = processes.all_gather(sha256)[0]
