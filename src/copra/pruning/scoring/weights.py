"""Scores of the weights of each unit: their magnitude, and their first-order effect on the loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from copra.models.anatomy import layout_of
from copra.models.channels import channels_of
from copra.models.families.family import Layout, Part
from copra.schema.shape import LayerShape

Measure = Callable[[nn.Parameter], Tensor]
"""Returns the score of each weight of a parameter, in the shape of the parameter."""


def magnitude(parameter: nn.Parameter) -> Tensor:
    """Return |w|."""
    return parameter.detach().abs()


def taylor(parameter: nn.Parameter) -> Tensor:
    """Return |w dL/dw| from `parameter.grad`: to first order, the change of the loss without the weight.

    Weight by weight as in LLM-Pruner (arXiv 2305.11627, section 3.2).
    """
    assert parameter.grad is not None, "the backward pass comes first"
    return (parameter.detach() * parameter.grad).abs()


def weight_scores(block: nn.Module, sizes: LayerShape, measure: Measure) -> dict[str, Tensor]:
    """Return sums over the weights of the layer, [], its query heads, [H], and its neurons, [I], in float64.

    A head counts its rows of the query and its columns of the output projection, and an equal share of the
    key and value rows of its group, so that the heads of a group count all of its weights together. A
    neuron counts its rows of the gate and up and its column of the down projection. Biases belong to rows. A
    layer counts all of its parameters.
    """
    layout = layout_of(block)
    whole = (measure(parameter).sum(dtype=torch.float64) for parameter in block.parameters())
    rows = _rows_by_part(block, layout, sizes, measure)
    heads, groups = sizes.query_heads, sizes.kv_heads
    written = _columns(block.get_submodule(layout.attention_output), measure)
    own = rows["query"] + written.view(heads, -1).sum(1)
    shared = (rows["key"] + rows["value"]) * groups / heads
    return {
        "layer": sum(whole, torch.zeros((), dtype=torch.float64)).cpu(),
        "head": (own + shared.repeat_interleave(heads // groups)).cpu(),
        "neuron": (rows["neuron"] + _columns(block.get_submodule(layout.ffn_output), measure)).cpu(),
    }


def in_by_out(projection: nn.Module, values: Tensor) -> Tensor:
    """Return values in the shape of a weight as [in, out]: GPT-2 stores weights so, others as [out, in]."""
    return values if isinstance(projection, Conv1D) else values.T


def _rows_by_part(
    block: nn.Module, layout: Layout, sizes: LayerShape, measure: Measure
) -> dict[Part, Tensor]:
    """Return sums over the weight rows of each query, key and value head, [H], [K], [K], and neuron, [I]."""
    found: dict[Part, Tensor] = {}
    for projection in layout.projections:
        rows = _rows(block.get_submodule(projection.name), measure)
        for part, indices in channels_of(projection, sizes).items():
            found[part] = found.get(part, 0) + rows[indices.to(rows.device)].sum(1)
    return found


def _rows(projection: nn.Module, measure: Measure) -> Tensor:
    """Return sums over the weights of each output channel and its bias, [out]."""
    sums = in_by_out(projection, measure(projection.get_parameter("weight"))).sum(0, dtype=torch.float64)
    bias = projection.bias
    return sums + measure(bias) if isinstance(bias, nn.Parameter) else sums


def _columns(projection: nn.Module, measure: Measure) -> Tensor:
    """Return sums over the weights of each input channel, [in]."""
    return in_by_out(projection, measure(projection.get_parameter("weight"))).sum(1, dtype=torch.float64)
