"""Surgery: applying a plan by removing the weights of its units."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from copra.models.anatomy import blocks
from copra.models.channels import channels_of
from copra.models.families import family_of
from copra.models.families.family import Family, Layout
from copra.models.limits import cannot_lose
from copra.models.per_layer import CLASSES
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.schema.shape import ModelShape
from copra.schema.units import group_size
from copra.utils.errors import CopraError

# Keys that name the config's class and file, and keys that only copra's own classes have: both differ after
# a change of class.
_IDENTITY = ("model_type", "architectures", "auto_map", "transformers_version")
_OWN = ("head_dim", "layer_overrides")


def prune(model: PreTrainedModel, plan: Mapping[str, Any]) -> PreTrainedModel:
    """Return the model without the units that the plan removes; see `cut_model`.

    Raises:
        CopraError: the plan is for another model, or no model class can hold the result.
    """
    check_fits(model, plan)
    return cut_model(model, KeptUnits.from_json(plan["kept"]))


def cut_model(model: PreTrainedModel, cut: KeptUnits) -> PreTrainedModel:
    """Return the model after a cut.

    It has the plain class where that accepts the shape. Where layers differ, or the heads no longer divide a
    Llama's width or fill a GPT-2's, it has the family's class in `per_layer`. Weights that the cut does not
    touch are shared with `model`, not copied: use only one of the two afterwards.

    Raises:
        CopraError: the cut is illegal, or models of this family cannot lose such units.
    """
    before = shape_of(model.config.to_dict())
    shape = cut.shape(before)
    _check_can_lose(model.config.to_dict(), before, cut)
    model_class, config = _class_and_config(model, shape, cut.layers)
    return assemble(model, model_class, config, _state(model, cut))


def check_fits(model: PreTrainedModel, plan: Mapping[str, Any]) -> None:
    """Check that a plan was made for a model of this shape.

    Raises:
        CopraError: the shapes differ.
    """
    shape = shape_of(model.config.to_dict())
    if shape != ModelShape.from_json(plan["shape_before"]):
        raise CopraError(
            f"plan: it was made for a model of {len(plan['shape_before']['layers'])} layers with other sizes "
            f"than this one of {len(shape.layers)} layers. Make the plan again from this model's scores."
        )


def assemble(
    like: PreTrainedModel,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
) -> PreTrainedModel:
    """Return a model that holds the tensors of `state`, without copying them.

    Device, mode and generation settings are those of `like`. Buffers that are not in the state, such as the
    frequencies of the rotary embedding, are computed from the config.
    """
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training).to(like.device)


def _prefix(model: PreTrainedModel) -> str:
    """Return the prefix of the names of the layers' weights, such as `model.layers.`."""
    layers = blocks(model)
    return next(name for name, module in model.named_modules() if module is layers) + "."


def _state(model: PreTrainedModel, cut: KeptUnits) -> dict[str, Tensor]:
    """Return the state dict after the cut: kept layers renumbered from 0, and all tensors outside layers."""
    prefix, shape = _prefix(model), shape_of(model.config.to_dict())
    layout = family_of(model.config.model_type).layout
    slices = {layer: _slices(layout, shape, cut, layer) for layer in cut.layers}
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        number, rest = name.removeprefix(prefix).split(".", 1)
        if (layer := int(number)) not in slices:
            continue
        if rest in slices[layer]:
            dimension, channels = slices[layer][rest]
            tensor = tensor.index_select(dimension, channels.to(tensor.device))
        state[f"{prefix}{cut.layers.index(layer)}.{rest}"] = tensor
    return state


def _slices(layout: Layout, shape: ModelShape, cut: KeptUnits, layer: int) -> dict[str, tuple[int, Tensor]]:
    """Return, for each weight of a layer that loses channels, the dimension and the kept channels."""
    sizes = shape.layers[layer]
    heads, groups = cut.heads_of(shape, layer), cut.kv_groups_of(shape, layer)
    stay = {"query": heads, "key": groups, "value": groups, "neuron": cut.neurons_of(shape, layer)}
    outward, inward = (0, 1) if layout.transposed else (1, 0)
    found: dict[str, tuple[int, Tensor]] = {}
    for projection in layout.projections:
        touched = cut.neurons if "neuron" in projection.makes else cut.heads
        if touched[layer] is not None:
            parts = channels_of(projection, sizes).items()
            kept = torch.cat([indices[list(stay[part])].flatten() for part, indices in parts]).sort().values
            found[f"{projection.name}.weight"] = (inward, kept)
            found[f"{projection.name}.bias"] = (0, kept)
    if cut.heads[layer] is not None:
        queries = torch.arange(sizes.query_heads * sizes.head_dim).view(-1, sizes.head_dim)
        found[f"{layout.attention_output}.weight"] = (outward, queries[list(heads)].flatten())
    if cut.neurons[layer] is not None:
        found[f"{layout.ffn_output}.weight"] = (outward, torch.tensor(stay["neuron"]))
    return found


def _class_and_config(
    model: PreTrainedModel, shape: ModelShape, kept_layers: Sequence[int]
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Return the class that holds a model of this shape, and its config."""
    old, family = model.config, family_of(model.config.model_type)
    values = {name: value for name, value in old.to_dict().items() if name not in (*_IDENTITY, *_OWN)}
    for name in family.by_layer:
        values[name] = [values[name][layer] for layer in kept_layers]
    values |= _sizes(family, shape) | {"attn_implementation": old._attn_implementation}
    if (plain := _plain_config(family, shape, values)) is not None:
        # Annotated as a pair of classes, which the mapping of another task has.
        return cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)]), plain
    config_class, _, model_class = CLASSES[family.model_type]
    overrides = [
        {
            family.query_heads: layer.query_heads,
            **({family.kv_heads: layer.kv_heads} if family.kv_heads else {}),
            family.ffn: layer.ffn,
        }
        for layer in shape.layers
    ]
    own = {"head_dim": shape.layers[0].head_dim, "layer_overrides": overrides}
    return model_class, config_class(**values | own)


def _sizes(family: Family, shape: ModelShape) -> dict[str, int]:
    """Return the sizes of the largest layer and the number of layers, by the config's keys."""
    layers = shape.layers
    return {
        family.layers: len(layers),
        family.query_heads: max(layer.query_heads for layer in layers),
        **({family.kv_heads: max(layer.kv_heads for layer in layers)} if family.kv_heads else {}),
        family.ffn: max(layer.ffn for layer in layers),
    }


def _plain_config(family: Family, shape: ModelShape, values: Mapping[str, Any]) -> PreTrainedConfig | None:
    """Return the config of the plain class, or None if that cannot hold a model of this shape."""
    first = shape.layers[0]
    if len({replace(layer, window=None) for layer in shape.layers}) > 1:
        return None
    if family.heads_fill_width:
        fills = first.query_heads * first.head_dim == shape.hidden
        return CONFIG_MAPPING[family.model_type](**values) if fills else None
    try:
        return CONFIG_MAPPING[family.model_type](**{**values, "head_dim": first.head_dim})
    except StrictDataclassError:  # such as head counts that do not divide the width
        return None


def _check_can_lose(config: Mapping[str, Any], shape: ModelShape, cut: KeptUnits) -> None:
    """Check that models of this family can lose the units that a cut removes.

    Raises:
        CopraError: they cannot.
    """
    lost = {"layers"} if len(cut.layers) < len(shape.layers) else set()
    for layer in cut.layers:
        sizes, heads = shape.layers[layer], len(cut.heads_of(shape, layer))
        groups = len(cut.kv_groups_of(shape, layer))
        lost |= {"kv_groups"} if groups < sizes.kv_heads else set()
        lost |= {"heads"} if heads < groups * group_size(sizes) else set()
    for unit in sorted(lost):
        if problem := cannot_lose(config, unit):
            raise CopraError(f"pruning: {problem}")
