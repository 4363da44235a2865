"""Hidden states and activations of one forward pass, with their gradients from the backward pass.

x^l is the input of block l and x^L the output of the last block, before the final norm: hooks on the
blocks record them, because `hidden_states[-1]` is after that norm. With latents a block runs several times
per batch. Each call covers the next columns of the batch, so the concatenated calls are the whole batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import IGNORED
from copra.models.anatomy import attention_output, blocks, ffn_output

Sums = dict[str, Tensor]
"""Sums over a calibration set by name, float64 on the CPU; those of several batches add up."""


@dataclass
class Record:
    """Recorded tensors of each layer, [B, n, C] per call; the n of all calls sum to the batch's columns."""

    states: list[list[Tensor]] = field(default_factory=list)
    """x^0 to x^L, one more than the number of layers; x^0 has no gradient."""
    heads: list[list[Tensor]] = field(default_factory=list)
    """The concatenated heads' outputs: inputs of the attentions' output projections."""
    neurons: list[list[Tensor]] = field(default_factory=list)
    """The neurons' activations: inputs of the FFNs' down projections."""


@contextlib.contextmanager
def recording(model: PreTrainedModel) -> Iterator[Record]:
    """Yield a record that forward passes within this context append to.

    A later backward pass stores the gradient of each tensor, other than those of x^0, in its `.grad`.
    """
    layers = blocks(model)
    record = Record(
        states=[[] for _ in range(len(layers) + 1)],
        heads=[[] for _ in layers],
        neurons=[[] for _ in layers],
    )
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: record.states[0].append(args[0]))]
    for layer, block in enumerate(layers):
        inputs = ((attention_output(block), record.heads), (ffn_output(block), record.neurons))
        for projection, calls in inputs:
            hooks.append(
                projection.register_forward_pre_hook(
                    lambda _, args, calls=calls[layer]: calls.append(_with_gradient(args[0]))
                )
            )
        hooks.append(
            block.register_forward_hook(
                lambda _, args, output, calls=record.states[layer + 1]: calls.append(_with_gradient(output))
            )
        )
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Tokens:
    """The M tokens of a batch, example by example, without padding.

    `mask` [B, N] is true on tokens, `counts` are the tokens per example. `predicting` [B] holds the index,
    among the M tokens, of each example's last token whose next one is supervised: in a sequence with labels
    up to its end token, the token before that.
    """

    mask: Tensor
    counts: list[int]
    predicting: Tensor

    @staticmethod
    def of(batch: Batch) -> "Tokens":
        mask = batch.mask.bool()
        places = mask.flatten().cumsum(0).view_as(mask) - 1
        supervised = batch.labels[:, 1:] != IGNORED
        predicting = places[:, :-1].masked_fill(~supervised, 0).amax(1)
        return Tokens(mask, mask.sum(1).tolist(), predicting)

    def values(self, calls: Sequence[Tensor]) -> Tensor:
        """Return the recorded values at the tokens, [M, C], at least in float32."""
        return _precise(torch.cat([call.detach() for call in calls], dim=1)[self.mask])

    def gradients(self, calls: Sequence[Tensor]) -> Tensor:
        """Return the gradients of the recorded values at the tokens, [M, C], at least in float32."""
        return _precise(torch.cat([_gradient(call) for call in calls], dim=1)[self.mask])

    def both(self, calls: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return values and gradients."""
        return self.values(calls), self.gradients(calls)

    def sums(self, x: Tensor) -> Tensor:
        """Return sums over the tokens of each example: [B, C] in float64 from [M, C]."""
        return torch.stack([part.sum(0, dtype=torch.float64) for part in x.split(self.counts)])


def gradient_sums(products: Tensor, tokens: Tokens) -> Sums:
    """Return sums for the three `gradient` metrics from a . dL/da at each token, [M, U] for U units.

    With a mask of ones on the units, these are the derivatives of the loss for that mask. The absolute
    value is taken per example (Michel et al. 2019, arXiv 1905.10650, section 4.1), per token, or, for
    `gradient_batch`, later in `gradient_scores`.
    """
    examples = tokens.sums(products)
    return {
        "gradient": examples.abs().sum(0).cpu(),
        "gradient_token": products.abs().sum(0, dtype=torch.float64).cpu(),
        "gradient_batch": examples.sum(0).cpu(),
    }


def gradient_scores(sums: Sums, examples: int) -> dict[str, Tensor]:
    """Return the three `gradient` metrics, [U] each: means over examples."""
    return {
        "gradient": sums["gradient"] / examples,
        "gradient_token": sums["gradient_token"] / examples,
        "gradient_batch": sums["gradient_batch"].abs() / examples,
    }


def activation_sums(activations: Tensor, tokens: Tokens) -> Tensor:
    """Return sums over examples of (mean over tokens of |a|)^2, [C], from the activations [M, C].

    Minitron, arXiv 2407.14679, section 2.2: mean over the sequence, L2 over the batch.
    """
    lengths = torch.tensor(tokens.counts, device=activations.device)[:, None]
    return (tokens.sums(activations.abs()) / lengths).square().sum(0).cpu()


def _with_gradient(x: Tensor) -> Tensor:
    x.retain_grad()
    return x


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None, "the backward pass comes first"
    return x.grad


def _precise(x: Tensor) -> Tensor:
    """Return x in float32, or in its own type if that is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
