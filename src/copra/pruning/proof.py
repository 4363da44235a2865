"""The proof of a surgery: the cut model has the same logits as the dense model with those units masked."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from copra.models.anatomy import attention_output, blocks, ffn_output
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.surgery import check_fits
from copra.utils.errors import CopraError

LIMIT = 1e-3
"""Largest difference of two logits in float64 that is attributed to rounding.

transformers rounds the input of an RMS norm to float32, which hides float64 differences (1e-13) in nearly all
cuts: on SmolLM2 135M, with logits up to 38, all differences are exactly 0. Where such a rounding flips, later
roundings follow, and logits differ by 1e-5. A single wrong neuron or head changes them by 0.5 to 30. In
float32, correct cuts differ by up to 5e-3."""

CHUNK = 256
"""Number of tokens whose logits are compared at once."""


@contextlib.contextmanager
def masked(model: PreTrainedModel, cut: KeptUnits) -> Iterator[None]:
    """Mask the removed units of the whole model within this context.

    Masked heads and neurons give 0, and a masked layer returns its input. Any heads can be masked, also those
    that no cut can remove alone.
    """
    shape = shape_of(model.config.to_dict())
    hooks = []
    for layer, block in enumerate(blocks(model)):
        if layer not in cut.layers:
            hooks.append(block.register_forward_hook(lambda _, args, output: args[0]))
            continue
        sizes = shape.layers[layer]
        if (heads := cut.heads[layer]) is not None:
            gone = _gone(heads, sizes.query_heads).repeat_interleave(sizes.head_dim)
            hooks.append(_silence(attention_output(block), gone.to(model.device)))
        if (neurons := cut.neurons[layer]) is not None:
            hooks.append(_silence(ffn_output(block), _gone(neurons, sizes.ffn).to(model.device)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gone(kept: Sequence[int], total: int) -> Tensor:
    gone = torch.ones(total, dtype=torch.bool)
    gone[list(kept)] = False
    return gone


def _silence(projection: nn.Module, gone: Tensor) -> RemovableHandle:
    """Register a hook that sets the channels `gone` of a projection's input to 0."""
    return projection.register_forward_pre_hook(lambda _, args: (args[0].masked_fill(gone, 0),))


@torch.no_grad()
def verify(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: Mapping[str, Any],
    input_ids: Tensor,
    attention_mask: Tensor,
) -> float:
    """Return the largest difference between logits of the cut and the masked model, over all tokens.

    `input_ids` and `attention_mask` are [B, T]; padding is on the right and not compared. Both models run in
    float64 and evaluation mode and are left unchanged. No model is copied: beside the two, memory holds the
    largest matrix in float64 and the logits of `CHUNK` tokens. For Llama 3.2 1B these are 2.1 GB (LM head)
    and 0.5 GB, where a copy in float64 would take 9.9 GB.

    Raises:
        CopraError: the difference is above `LIMIT` or not a number, or the plan is for another model.
    """
    check_fits(dense, plan)
    tokens, mask = input_ids.to(dense.device), attention_mask.to(dense.device).bool()
    with masked(dense, KeptUnits.from_json(plan["kept"])):
        expected = _hidden(dense, tokens)[mask]
    found = _hidden(pruned, tokens)[mask]
    difference = 0.0
    for one, other in zip(found.split(CHUNK), expected.split(CHUNK), strict=True):
        gap = float((_logits(pruned, one) - _logits(dense, other)).abs().max())
        if not gap <= LIMIT:
            raise CopraError(
                f"surgery: logits of the cut model differ by {gap:.3g} from those of the dense model with "
                f"the same units masked, and {LIMIT:.0e} is allowed in float64. The cut is wrong, so it is "
                "not saved."
            )
        difference = max(difference, gap)
    return difference


def _hidden(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return final-norm hidden states [B, T, d] in float64; no token attends to the padding on its right."""
    with _in_float64(model):
        # With a cache, two layers of the same index would read each other's keys and values.
        return model.base_model(input_ids=tokens, use_cache=True).last_hidden_state


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return logits [N, V] in float64 from hidden states [N, d]."""
    with _in_float64(model):
        return model.get_output_embeddings()(hidden)


@contextlib.contextmanager
def _in_float64(model: PreTrainedModel) -> Iterator[None]:
    """Run the model in evaluation mode and in float64 within this context.

    The weights of one module at a time are in float64: hooks replace them while the module runs.
    """
    training, hooks = model.training, []
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            hooks.append(module.register_forward_hook(lambda _, args, output: output.double()))
        elif own := list(module.parameters(recurse=False)):
            tensors = [parameter.data for parameter in own]

            def widen(*_: Any, own: list[nn.Parameter] = own) -> None:
                for parameter in own:
                    parameter.data = parameter.data.double()

            def restore(*_: Any, own: list[nn.Parameter] = own, tensors: list[Tensor] = tensors) -> None:
                for parameter, tensor in zip(own, tensors, strict=True):
                    parameter.data = tensor

            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore, always_call=True))
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
