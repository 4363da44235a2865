"""The proof of a surgery: the cut model computes what the dense one does with the same units masked."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from copra.errors import CopraError
from copra.models.anatomy import attention_output, blocks, ffn_output
from copra.models.shape import shape_of
from copra.pruning.cut import Cut
from copra.pruning.surgery import assemble, check_fits

TOLERANCE = 1e-4
"""The largest difference of two logits in float32 that rounding is believed to make."""


@contextlib.contextmanager
def masked(model: PreTrainedModel, cut: Cut) -> Iterator[None]:
    """The whole model with what goes masked: a layer passes its input on, heads and neurons give 0.

    Any heads can be masked, those too that no cut can remove alone.
    """
    shape = shape_of(model.config.to_dict())
    hooks = []
    for layer, block in enumerate(blocks(model)):
        if layer not in cut.layers:
            hooks.append(block.register_forward_hook(lambda _, args, output: args[0]))
            continue
        sizes = shape.layers[layer]
        if cut.heads[layer] is not None:
            gone = _gone(cut.heads[layer], sizes.query_heads).repeat_interleave(sizes.head_dim)
            hooks.append(_silence(attention_output(block), gone.to(model.device)))
        if cut.neurons[layer] is not None:
            hooks.append(_silence(ffn_output(block), _gone(cut.neurons[layer], sizes.ffn).to(model.device)))
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
    """Set the channels `gone` of a projection's input to 0."""
    return projection.register_forward_pre_hook(lambda _, args: (args[0].masked_fill(gone, 0),))


@torch.no_grad()
def prove(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: Mapping[str, Any],
    input_ids: Tensor,
    attention_mask: Tensor,
) -> float:
    """The largest difference between logits of the cut and the masked model, over all tokens.

    `input_ids` and `attention_mask` are [B, T]; padding is left out. Both models are compared in float32
    and evaluation mode through copies that live one after the other; they stay as they are.

    Raises:
        CopraError: the difference is above 1e-4 or not a number, or the plan is of another model.
    """
    check_fits(dense, plan)
    inputs = {"input_ids": input_ids.to(dense.device), "attention_mask": attention_mask.to(dense.device)}
    copied = _float_copy(dense)
    with masked(copied, Cut.from_json(plan["kept"])):
        expected = _logits(copied, inputs)
    del copied
    difference = float((_logits(_float_copy(pruned), inputs) - expected).abs().max())
    if not difference <= TOLERANCE:
        raise CopraError(
            f"surgery: logits of the cut model differ by {difference:.3g} from those of the dense model with "
            f"the same units masked, and {TOLERANCE:.0e} is allowed. The cut is wrong, so it is not saved."
        )
    return difference


def _logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits at all tokens that are not padding, [N, V]."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def _float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float32 and evaluation mode; weights that are in float32 already are shared."""
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    return assemble(model, type(model), copy.deepcopy(model.config), state).eval()
