"""Scores of heads from hard-concrete gates, which find heads that can be removed together.

A gate z in [0, 1] multiplies the output of a query head, or of all heads of a KV group, before the output
projection of attention. In training z is a sample of the hard concrete distribution, which is 0 and 1 with
positive probability and yet has a gradient in log alpha (Louizos et al. 2018, arXiv 1712.01312, section
2.2; on heads: Voita et al. 2019, arXiv 1905.09418).
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import GenerationSpec
from copra.models.anatomy import attention_output, blocks
from copra.models.shape import shape_of
from copra.pruning.scoring.objective import example_losses
from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.schema.metrics import SCORED_AS
from copra.schema.scoring import Gates
from copra.schema.units import UnitKind, units_of

BETA, GAMMA, ZETA = 1 / 3, -0.1, 1.1
"""Temperature of the concrete distribution, and the interval that it is stretched to before clamping."""

OPEN = 2.0
"""Log alpha of a gate before training: nearly always open."""

PENALTY = 100.0
"""lambda_2 before training. From 0 it would rise so slowly that lambda_1 alone drives the gates past the
target, so far that no gradient is left to bring them back."""

BETAS = (0.9, 0.99)
"""Betas of Adam: the gradient of a closing gate soon becomes a hundred times smaller, and 0.999 would adapt
too slowly."""

T = TypeVar("T")


def gate_scores(
    model: PreTrainedModel,
    extra_modules: nn.ModuleDict,
    batches: Iterator[Batch],
    decoding: GenerationSpec | None,
    kind: UnitKind,
    settings: Gates,
) -> list[ScoreRow]:
    """Return log alpha of every unit's gate, trained on the loss of the model with frozen weights.

    The expected sparsity s, the mean of P(z = 0), is constrained to the target t: the loss gets the term
    lambda_1 (s - t) + lambda_2 (s - t)^2 with multipliers that rise along their gradient (augmented
    Lagrangian of Wang et al. 2020, arXiv 1910.04732). Three measures stabilize the training (arXiv
    2110.03252): the weight of that term rises from 0 over `warmup_steps`, gates start open, and a layer with
    n gates of which c are 0 has its attention scaled by n / (n - c). Each example draws its own gates.

    `batches` must yield at least `steps` batches.
    """
    shape = shape_of(model.config.to_dict())
    units = units_of(kind, shape)
    sizes = [sum(layer == index for layer, _ in units) for index in range(len(shape.layers))]
    log_alpha = torch.full((len(units),), OPEN, device=model.device, requires_grad=True)
    multipliers = torch.tensor([0.0, PENALTY], device=model.device, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [log_alpha]}, {"params": [multipliers], "maximize": True}]
    optimizer = torch.optim.Adam(groups, lr=settings.learning_rate, betas=BETAS)
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of(batch: Batch, gates: Tensor) -> Tensor:
        with gated(model, gates.split(sizes, dim=-1)):
            return example_losses(model, extra_modules, batch, decoding).mean()

    with _frozen(model, extra_modules):
        for step in tqdm(range(settings.steps), unit="step", mininterval=5, dynamic_ncols=True):
            batch = next(batches).to(model.device)
            noise = torch.rand(len(batch), len(units), generator=generator).to(model.device)
            excess = closed_probability(log_alpha).mean() - settings.target_sparsity
            weight = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
            sparsity_loss = multipliers[0] * excess + multipliers[1] * excess.square()
            total = loss_of(batch, sampled(log_alpha, noise)) + weight * sparsity_loss
            log_alpha.grad, multipliers.grad = torch.autograd.grad(total, (log_alpha, multipliers))
            optimizer.step()
    with torch.no_grad():
        gates = deterministic(log_alpha)
        loss = loss_of(batch, gates)
        tqdm.write(
            f"expected sparsity {closed_probability(log_alpha).mean():.3f}, target "
            f"{settings.target_sparsity}; {int((gates == 0).sum())} of {len(units)} gates are closed and "
            f"{int((gates == 1).sum())} open. Loss of the last batch {loss:.4f}, without gates "
            f"{loss_of(batch, torch.ones_like(gates)):.4f}"
        )
    return [
        score_row("gates", score, SCORED_AS[kind], layer, index)
        for score, (layer, index) in zip(log_alpha.tolist(), units, strict=True)
    ]


def endless_batches(
    items: Sequence[T], lay_out: Callable[[Sequence[T]], Iterator[Batch]], seed: int
) -> Iterator[Batch]:
    """Yield batches of all items without end, shuffled anew in each epoch."""
    for epoch in itertools.count():
        order = list(items)
        Random(f"gates {seed} {epoch}").shuffle(order)
        yield from lay_out(order)


def sampled(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Return gates z from uniform noise in [0, 1), whose shape log alpha is broadcast to."""
    concrete = torch.sigmoid((noise.logit() + log_alpha) / BETA)
    return _stretched(concrete)


def deterministic(log_alpha: Tensor) -> Tensor:
    """Return the gates used after training, where no noise is drawn."""
    return _stretched(torch.sigmoid(log_alpha))


def closed_probability(log_alpha: Tensor) -> Tensor:
    """Return P(z = 0) of each gate."""
    return torch.sigmoid(BETA * math.log(-GAMMA / ZETA) - log_alpha)


@contextlib.contextmanager
def gated(model: PreTrainedModel, gates: Sequence[Tensor]) -> Iterator[None]:
    """Multiply the heads' outputs of every layer by its gates, [n] or [B, n], and scale, within this context.

    n divides the layer's number of heads; neighboring heads share a gate.
    """

    def hook(gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        closed = (gate == 0).sum(-1, keepdim=True)
        factors = gate * gate.shape[-1] / (gate.shape[-1] - closed).clamp(min=1)

        def call(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            outputs = arguments[0]
            wide = factors.repeat_interleave(outputs.shape[-1] // factors.shape[-1], dim=-1)
            return (outputs * wide[..., None, :].to(outputs.dtype), *arguments[1:])

        return call

    handles = [
        attention_output(block).register_forward_pre_hook(hook(gate))
        for block, gate in zip(blocks(model), gates, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Disable gradients of the modules' parameters within this context, to save memory."""
    learning = [each for module in modules for each in module.parameters() if each.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _stretched(concrete: Tensor) -> Tensor:
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
