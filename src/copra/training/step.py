"""One optimizer step, and one look at validation: the loss over a batch, by all processes together."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from random import Random

import torch
from accelerate import Accelerator
from torch import nn

from copra import processes
from copra.errors import CopraError
from copra.reasoning.forward import Batch, Terms, collate, weighted, width_multiple
from copra.reasoning.layout import Sample
from copra.reasoning.method import Stage
from copra.reasoning.thinker import Thinker
from copra.training.batches import micro_batches
from copra.training.progress import Means
from copra.training.sharding import is_sharded


class Objective(nn.Module):
    """A thinker with its stage's loss, as one module, so that wrappers see every forward pass."""

    def __init__(self, thinker: Thinker, stage: Stage):
        super().__init__()
        self.thinker = thinker
        self.stage = stage

    def forward(self, batch: Batch) -> Terms:
        return self.stage.loss(self.thinker, batch)


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
) -> tuple[float, dict[str, float]]:
    """Add up the gradients of a batch's loss in all processes, in micro-batches of `size` rows.

    Returns the loss, and the mean of each of its terms, over the whole batch.
    """
    total = torch.zeros((), device=accelerator.device)
    means = Means()
    parts = list(micro_batches(batch, size))
    multiple = width_multiple(accelerator.device)
    for number, (samples, counted, latents) in enumerate(parts, 1):
        with contextlib.nullcontext() if number == len(parts) else _alone(objective, accelerator):
            terms = objective(collate(samples, pad, latents, multiple).to(accelerator.device))
            loss = weighted(terms, weights, counts) * counted
            # Gradients are averaged over processes, and the loss is a sum.
            accelerator.backward(loss * processes.count())
        if counted:
            total += loss.detach()
            means.add(terms)
    return sum(processes.gather(total.item())), means.values()


def _alone(objective: nn.Module, accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """Within, gradients add up in each process for itself: not where each would have to keep all of them."""
    return contextlib.nullcontext() if is_sharded(objective) else accelerator.no_sync(objective)


@torch.no_grad()
def look(objective: nn.Module, samples: Sequence[Sample], *, pad: int, size: int) -> dict[str, float]:
    """The mean of each term of the loss over samples, `size` rows in a pass of each process."""
    objective.eval()
    means = Means()
    device = next(objective.parameters()).device
    for part, counted, latents in micro_batches(sorted(samples, key=lambda one: len(one.tokens)), size):
        terms = objective(collate(part, pad, latents, width_multiple(device)).to(device))
        if counted:
            means.add(terms)
    return means.values()


def check_step(
    step: int, loss: float, norm: float, cross_entropy: float, vocabulary: int, batch: Sequence[Sample]
) -> None:
    """Stop before a broken step reaches the weights.

    Raises:
        CopraError: the loss or the gradient's norm is not finite, or the cross-entropy explodes.
    """
    # A model that guesses all tokens alike has a loss of ln V; three times that is no model any more.
    limit = 3 * math.log(vocabulary)
    if math.isfinite(loss) and math.isfinite(norm) and cross_entropy <= limit:
        return
    rows = ", ".join(sample.id for sample in batch[:8])
    raise CopraError(
        f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: the training has broken down (limit "
        f"for cross-entropy {limit:.4g}). Batch of rows {rows}{', ...' if len(batch) > 8 else ''}. Lower "
        "training.learning_rate, raise training.warmup_steps, or look at those rows."
    )
