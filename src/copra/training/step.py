"""One optimizer step, and one look at validation: the loss over a batch, by all processes together."""

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
from copra.methods.losses import LossTerms, weighted
from copra.methods.method import Stage
from copra.methods.reasoning_model import ReasoningModel
from copra.training.batches import micro_batches
from copra.training.progress import Means
from copra.training.sharding import is_sharded
from copra.utils import processes
from copra.utils.errors import CopraError


class Objective(nn.Module):
    """A reasoner with its stage's loss, as one module, so that wrappers see every forward pass."""

    def __init__(self, reasoner: ReasoningModel, stage: Stage):
        super().__init__()
        self.reasoner = reasoner
        self.stage = stage

    def forward(self, batch: Batch) -> LossTerms:
        return self.stage.loss(self.reasoner, batch)


def seed_step(seed: int, step: int) -> None:
    """Make a step's dropout a function of its number and the process: a resumed run draws the same."""
    torch.manual_seed(Random(f"step {seed} {step} {processes.rank()}").getrandbits(63))


def accumulate(
    objective: nn.Module,
    accelerator: Accelerator,
    batch: Sequence[Sample],
    *,
    weights: Mapping[str, float],
    counts: Mapping[str, int],
    pad: int,
    size: int | None,
    tokens: int | None,
) -> tuple[torch.Tensor, Means]:
    """Add up the gradients of a batch's loss in all processes, in micro-batches of `size` rows and `tokens`
    padded tokens.

    Returns this process's part of the loss, and the means of its terms; nothing waits for a GPU.
    """
    total = torch.zeros((), device=accelerator.device)
    means = Means()
    multiple = width_multiple(accelerator.device)
    parts = list(micro_batches(batch, size, tokens, multiple))
    for number, (samples, counted, latents) in enumerate(parts, 1):
        with contextlib.nullcontext() if number == len(parts) else _alone(objective, accelerator):
            terms = objective(collate(samples, pad, latents, multiple).to(accelerator.device))
            loss = weighted(terms, weights, counts) * counted
            # Gradients are averaged over processes, and the loss is a sum.
            accelerator.backward(loss * processes.world_size())
        if counted:
            total += loss.detach()
            means.add(terms)
    return total, means


def _alone(objective: nn.Module, accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """Within, gradients add up in each process for itself: not where each would have to keep all of them."""
    return contextlib.nullcontext() if is_sharded(objective) else accelerator.no_sync(objective)


@torch.no_grad()
def look(
    objective: nn.Module, samples: Sequence[Sample], *, pad: int, size: int, tokens: int | None = None
) -> dict[str, float]:
    """The mean of each term of the loss over samples, in passes of each process as `micro_batches` makes
    them."""
    objective.eval()
    means = Means()
    device = next(objective.parameters()).device
    ordered = sorted(samples, key=lambda one: len(one.tokens))
    multiple = width_multiple(device)
    for part, counted, latents in micro_batches(ordered, size, tokens, multiple):
        terms = objective(collate(part, pad, latents, multiple).to(device))
        if counted:
            means.add(terms)
    return means.values()


@dataclass
class Taken:
    """An optimizer step whose numbers may still be under way from a GPU to this host.

    `loss` is this process's part, `norm` the gradient's norm, `broken` 1.0 if the step was not to reach the
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
        """Start the way of all numbers to the host, so that `read` need not wait for later work in the GPU's
        queue."""
        if self.loss.is_cuda:
            self.loss, self.norm, self.broken = map(_on_the_way, (self.loss, self.norm, self.broken))
            for entry in self.means.sums.values():
                entry[:] = map(_on_the_way, entry)
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Step, loss and norm, and the means of the loss's terms, over all processes, which all must call
        this; it waits until the step is done.

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
    """A number that is copied to pinned memory of the host when the GPU comes to it."""
    return value.to("cpu", non_blocking=True) if isinstance(value, torch.Tensor) else value


def cross_entropy_limit(vocabulary: int) -> float:
    """The largest cross-entropy of a model that still works: one that guesses all tokens alike has ln V, and
    three times that is no model any more."""
    return 3 * math.log(vocabulary)


@torch.no_grad()
def is_broken(loss: torch.Tensor, norm: torch.Tensor, means: Means, limit: float) -> torch.Tensor:
    """Return 1.0 on the device if the loss or the norm is not finite or the cross-entropy is above its limit,
    and 0.0 otherwise."""
    working = torch.isfinite(loss) & torch.isfinite(norm)
    if (cross_entropy := means.on_device("cross_entropy")) is not None:
        working &= cross_entropy <= limit
    return (~working).float()


def skip_if(broken: torch.Tensor, optimizer: Any) -> None:
    """Let the next step of a fused optimizer change nothing where `broken` is 1.0, as found on the device
    (the way in which gradient scalers skip steps); moments and step counts stay too."""
    getattr(optimizer, "optimizer", optimizer).found_inf = broken
