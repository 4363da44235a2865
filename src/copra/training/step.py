"""Compute the loss over a batch, by all processes together, for an optimizer step and for validation."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from copra.data.batch import Batch, collate, width_multiple
from copra.data.sequences import Sample
from copra.methods.loss_functions import weighted
from copra.methods.losses import LossValues
from copra.methods.method import Stage
from copra.methods.reasoning_model import ReasoningModel
from copra.training.batches import micro_batches
from copra.training.progress import Means
from copra.training.sharding import is_sharded
from copra.utils import processes
from copra.utils.errors import CopraError

LARGEST_START = 32.0
"""Largest cross-entropy with which a training from a working model may begin: a probability of 1e-14."""


class LossModule(nn.Module):
    """A reasoning model with its stage's loss as one module, so that DDP and FSDP wrap every forward pass."""

    def __init__(self, reasoner: ReasoningModel, stage: Stage):
        super().__init__()
        self.reasoner = reasoner
        self.stage = stage

    def forward(self, batch: Batch) -> LossValues:
        return self.stage.loss(self.reasoner, batch)


def seed_step(seed: int, step: int) -> None:
    """Seed dropout by seed, step and process, so that a resumed run draws the same masks."""
    torch.manual_seed(Random(f"step {seed} {step} {processes.rank()}").getrandbits(63))


def accumulate(
    loss_module: nn.Module,
    accelerator: Accelerator,
    batch: Sequence[Sample],
    *,
    weights: Mapping[str, float],
    counts: Mapping[str, float],
    pad: int,
    size: int | None,
    tokens: int | None,
) -> tuple[torch.Tensor, Means]:
    """Accumulate the gradients of a batch's loss in micro-batches, see `micro_batches`.

    Return this process's part of the loss, and the means of its terms, without synchronizing with a GPU.
    """
    total = torch.zeros((), device=accelerator.device)
    means = Means()
    multiple = width_multiple(accelerator.device)
    batches = list(micro_batches(batch, size, tokens, multiple))
    for number, (samples, counted, latents) in enumerate(batches, 1):
        with contextlib.nullcontext() if number == len(batches) else _alone(loss_module, accelerator):
            values = loss_module(collate(samples, pad, latents, multiple).to(accelerator.device))
            loss = weighted(values, weights, counts) * counted
            # DDP and FSDP average gradients over processes, but the loss is a sum.
            accelerator.backward(loss * processes.world_size())
        if counted:
            total += loss.detach()
            means.add(values)
    return total, means


def _alone(loss_module: nn.Module, accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """Return a context without gradient synchronization; if sharded, one that changes nothing.

    Without synchronization a sharded module would have to hold all gradients in each process.
    """
    return contextlib.nullcontext() if is_sharded(loss_module) else accelerator.no_sync(loss_module)


@torch.no_grad()
def evaluate_loss(
    loss_module: nn.Module, samples: Sequence[Sample], *, pad: int, size: int, tokens: int | None = None
) -> dict[str, float]:
    """Return the mean of each loss term over the samples, which the processes share in micro-batches."""
    loss_module.eval()
    means = Means()
    device = next(loss_module.parameters()).device
    ordered = sorted(samples, key=lambda one: len(one.tokens))
    multiple = width_multiple(device)
    for chosen, counted, latents in micro_batches(ordered, size, tokens, multiple):
        values = loss_module(collate(chosen, pad, latents, multiple).to(device))
        if counted:
            means.add(values)
    return means.values()


@dataclass
class PendingStep:
    """An optimizer step whose numbers may still be in transfer from a GPU to this host.

    `loss` is this process's part, `norm` the gradient's norm, `broken` 1.0 if the step must not change the
    weights and 0.0 otherwise, `limit` the largest cross-entropy of a working model.
    """

    step: int
    batch: Sequence[Sample]
    loss: torch.Tensor
    norm: torch.Tensor
    means: Means
    limit: float
    broken: torch.Tensor
    arrival: "torch.cuda.Event | None" = None
    known: tuple[dict[str, float], dict[str, float]] | None = None

    def __post_init__(self) -> None:
        """Start copying all numbers to the host, so that `read` does not wait for later work of the GPU."""
        if self.loss.is_cuda:
            self.loss, self.norm, self.broken = map(_on_the_way, (self.loss, self.norm, self.broken))
            for entry in self.means.sums.values():
                entry[:] = map(_on_the_way, entry)
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return step, loss and norm, and the means of the loss terms, over all processes.

        All processes must call it. It blocks until the step has finished.

        Raises:
            CopraError: the loss or the gradient's norm is not finite, or the cross-entropy explodes.
        """
        if self.known is not None:
            return self.known
        if self.arrival is not None:
            self.arrival.synchronize()
        loss, norm = sum(processes.all_gather(self.loss.item())), self.norm.item()
        found = self.means.values()
        cross_entropy = found.get("cross_entropy", 0.0)
        working = math.isfinite(loss) and math.isfinite(norm) and cross_entropy <= self.limit
        if not working or self.broken.item():
            rows = ", ".join(sample.id for sample in self.batch[:8])
            raise CopraError(
                f"step {self.step}: loss {loss:.4g}, gradient norm {norm:.4g}: the training has broken down "
                f"(limit for cross-entropy {self.limit:.4g}). Batch of rows "
                f"{rows}{', ...' if len(self.batch) > 8 else ''}. Lower training.learning_rate, raise "
                "training.warmup_steps, or look at those rows."
            )
        self.known = {"step": self.step, "loss": loss, "gradient_norm": norm}, found
        return self.known


def _on_the_way(value: Any) -> Any:
    """Return a copy of a number in pinned host memory, made asynchronously in the GPU's queue."""
    return value.to("cpu", non_blocking=True) if isinstance(value, torch.Tensor) else value


def cross_entropy_limit(vocabulary: int) -> float:
    """Return the largest cross-entropy of a working model: three times that of uniform guessing, or more.

    With a small vocabulary a working model may begin above that: one that is sure of its chain of thought
    gives an answer without steps a probability of 1e-4 per token, or less.
    """
    return max(3 * math.log(vocabulary), LARGEST_START)


@torch.no_grad()
def is_broken(loss: torch.Tensor, norm: torch.Tensor, means: Means, limit: float) -> torch.Tensor:
    """Return 1.0 on the device if a step is broken, and 0.0 otherwise.

    It is if the loss or the norm is not finite, or the cross-entropy is above its limit.
    """
    working = torch.isfinite(loss) & torch.isfinite(norm)
    if (cross_entropy := means.on_device("cross_entropy")) is not None:
        working &= cross_entropy <= limit
    return (~working).float()


def skip_if(broken: torch.Tensor, optimizer: Any) -> None:
    """Make the next step of a fused optimizer change nothing if `broken` is 1.0.

    Moments and step counts do not change either. The optimizer reads the flag on the device, as for gradient
    scalers.
    """
    getattr(optimizer, "optimizer", optimizer).found_inf = broken
