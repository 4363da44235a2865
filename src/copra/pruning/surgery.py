"""Applying a plan: the weights of removed units really go."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from copra.errors import CopraError
from copra.models.anatomy import blocks
from copra.models.copra_gpt2 import CopraGPT2Config, CopraGPT2LMHeadModel
from copra.models.copra_llama import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import ModelShape, shape_of
from copra.pruning.cut import Cut

# What a config says about its own class and file, and what only copra's own classes have: both differ
# after a change of class.
_IDENTITY = ("model_type", "architectures", "auto_map", "transformers_version")
_OWN = ("head_dim", "layer_overrides")


def prune(model: PreTrainedModel, plan: Mapping[str, Any]) -> PreTrainedModel:
    """The model that is left when the plan's units are gone; see `cut_model`.

    Raises:
        CopraError: the plan is of another model, or no model class can hold the result.
    """
    check_fits(model, plan)
    return cut_model(model, Cut.from_json(plan["kept"]))


def cut_model(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """The model that is left after a cut.

    It is of the plain class where that accepts the shape. Where layers come to differ, or the heads no
    longer divide a Llama's width or fill a GPT-2's, it is a `CopraLlamaForCausalLM` or
    `CopraGPT2LMHeadModel`. Weights that the cut does not touch are shared with `model`, not copied: use one
    of the two from then on.

    Raises:
        CopraError: the cut is illegal, or no model class can hold the result.
    """
    shape = cut.shape(shape_of(model.config.to_dict()))
    model_class, config = _class_and_config(model, shape, cut.layers)
    return assemble(model, model_class, config, _state(model, cut))


def check_fits(model: PreTrainedModel, plan: Mapping[str, Any]) -> None:
    """Refuse a plan that was made for a model of another shape.

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
    """A model around the tensors of `state`, without copying them.

    Device, mode and generation settings are those of `like`. What is not in the state, as the frequencies
    of the rotary embedding, is computed from the config.
    """
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(like.generation_config)
    return model.train(like.training).to(like.device)


def _prefix(model: PreTrainedModel) -> str:
    """What the names of the layers' weights begin with, such as `model.layers.`."""
    layers = blocks(model)
    return next(name for name, module in model.named_modules() if module is layers) + "."


def _state(model: PreTrainedModel, cut: Cut) -> dict[str, Tensor]:
    """The state that stays: layers renumbered from 0, and all that is not in a layer."""
    prefix, shape = _prefix(model), shape_of(model.config.to_dict())
    slices = {layer: _slices(shape, cut, layer) for layer in cut.layers}
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


def _slices(shape: ModelShape, cut: Cut, layer: int) -> dict[str, tuple[int, Tensor]]:
    """For each weight of a layer that loses something: along which dimension, and the channels that stay."""
    sizes = shape.layers[layer]
    found: dict[str, tuple[int, Tensor]] = {}
    if cut.heads[layer] is not None:
        queries = _channels(cut.heads_of(shape, layer), sizes.head_dim)
        keys = _channels(cut.kv_groups_of(shape, layer), sizes.head_dim)
        if shape.family == "gpt2":
            # Queries, keys and values stand side by side in one projection, stored as (in, out).
            width = sizes.query_heads * sizes.head_dim
            inputs = torch.cat([queries, width + queries, 2 * width + queries])
            found["attn.c_attn.weight"], found["attn.c_attn.bias"] = (1, inputs), (0, inputs)
            found["attn.c_proj.weight"] = (0, queries)
        else:
            for name, channels in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                for part in ("weight", "bias"):
                    found[f"self_attn.{name}.{part}"] = (0, channels)
            found["self_attn.o_proj.weight"] = (1, queries)
    if cut.neurons[layer] is not None:
        neurons = torch.tensor(cut.neurons_of(shape, layer))
        if shape.family == "gpt2":
            found["mlp.c_fc.weight"], found["mlp.c_fc.bias"] = (1, neurons), (0, neurons)
            found["mlp.c_proj.weight"] = (0, neurons)
        else:
            for name in ("gate_proj", "up_proj"):
                for part in ("weight", "bias"):
                    found[f"mlp.{name}.{part}"] = (0, neurons)
            found["mlp.down_proj.weight"] = (1, neurons)
    return found


def _channels(heads: Sequence[int], width: int) -> Tensor:
    """The channels of the heads, where each head has `width` neighbouring ones."""
    return (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()


def _class_and_config(
    model: PreTrainedModel, shape: ModelShape, kept_layers: Sequence[int]
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that holds a model of this shape, and its config."""
    old = model.config
    values = {name: value for name, value in old.to_dict().items() if name not in (*_IDENTITY, *_OWN)}
    if values.get("layer_types"):
        values["layer_types"] = [values["layer_types"][layer] for layer in kept_layers]
    choose = _gpt2_class if shape.family == "gpt2" else _llama_class
    model_class, config_class, sizes = choose(model, shape)
    return model_class, config_class(**values | sizes, attn_implementation=old._attn_implementation)


_Choice = tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]
"""A class, that of its config, and the sizes as the config calls them."""


def _gpt2_class(model: PreTrainedModel, shape: ModelShape) -> _Choice:
    layers, first = shape.layers, shape.layers[0]
    if model.config.scale_attn_by_inverse_layer_idx and len(layers) < model.config.n_layer:
        raise CopraError(
            "GPT-2 with scale_attn_by_inverse_layer_idx: attention depends on the layer's number, so layers "
            "cannot be removed. Prune heads or neurons, or take a model without this setting."
        )
    sizes = {
        "n_layer": len(layers),
        "n_head": max(layer.query_heads for layer in layers),
        "n_inner": max(layer.ffn for layer in layers),
    }
    if len(set(layers)) == 1 and first.query_heads * first.head_dim == shape.hidden:
        return GPT2LMHeadModel, GPT2Config, sizes
    overrides = [{"n_head": layer.query_heads, "n_inner": layer.ffn} for layer in layers]
    sizes |= {"head_dim": first.head_dim, "layer_overrides": overrides}
    return CopraGPT2LMHeadModel, CopraGPT2Config, sizes


def _llama_class(model: PreTrainedModel, shape: ModelShape) -> _Choice:
    layers, first = shape.layers, shape.layers[0]
    sizes = {
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(layer.query_heads for layer in layers),
        "num_key_value_heads": max(layer.kv_heads for layer in layers),
        "intermediate_size": max(layer.ffn for layer in layers),
        "head_dim": first.head_dim,
    }
    alike = len(set(layers)) == 1
    if (kind := model.config.model_type) not in ("llama", "copra_llama"):
        if not alike:
            raise CopraError(
                f"{kind}: its layers cannot differ in their numbers of heads or of FFN neurons. Use scope: "
                "uniform without protected layers, or take a Llama or a GPT-2, whose layers can."
            )
        return type(model), type(model.config), sizes
    if alike and shape.hidden % first.query_heads == 0:
        return LlamaForCausalLM, LlamaConfig, sizes
    overrides = [
        {
            "num_attention_heads": layer.query_heads,
            "num_key_value_heads": layer.kv_heads,
            "intermediate_size": layer.ffn,
        }
        for layer in layers
    ]
    return CopraLlamaForCausalLM, CopraLlamaConfig, sizes | {"layer_overrides": overrides}
