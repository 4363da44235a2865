"""Applying a plan: the weights of removed units really go."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from copra.errors import CopraError
from copra.models.anatomy import blocks
from copra.models.copra_llama import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import ModelShape, shape_of
from copra.pruning.plan import pruned_shape

# What a config says about its own class and file, which differ after a change of class.
_IDENTITY = ("model_type", "architectures", "auto_map", "transformers_version")


def prune(model: PreTrainedModel, plan: Mapping[str, Any]) -> PreTrainedModel:
    """The model that is left when the plan's units are gone.

    It is of the plain class where that accepts the shape, and a `CopraLlamaForCausalLM` where a Llama's
    layers come to differ or its heads no longer divide the width. Weights that the plan does not touch are
    shared with `model`, not copied: use one of the two from then on.

    Raises:
        CopraError: the plan is of another model, or no model class can hold the result.
    """
    check_fits(model, plan)
    unit, kept = plan["unit"], plan["kept"][plan["unit"]]
    shape = pruned_shape(shape_of(model.config.to_dict()), unit, kept)
    state = _keep_layers(model, kept) if unit == "layers" else _keep_kv_groups(model, kept)
    model_class, config = _class_and_config(model, shape, kept if unit == "layers" else None)
    return assemble(model, model_class, config, state)


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


def _keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> dict[str, Tensor]:
    """The state of the layers that stay, renumbered from 0, and of all that is not in a layer."""
    prefix = _prefix(model)
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        layer, rest = name.removeprefix(prefix).split(".", 1)
        if int(layer) in kept:
            state[f"{prefix}{kept.index(int(layer))}.{rest}"] = tensor
    return state


def _keep_kv_groups(model: PreTrainedModel, kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The state with the rows of q, k, v and the columns of o that belong to the groups that stay."""
    prefix = _prefix(model)
    state = model.state_dict()
    for index, (layer, groups) in enumerate(zip(shape_of(model.config.to_dict()).layers, kept, strict=True)):
        if len(groups) == layer.kv_heads:
            continue
        of_keys = _channels(groups, layer.head_dim)
        of_queries = _channels(groups, layer.head_dim * (layer.query_heads // layer.kv_heads))
        attention = f"{prefix}{index}.self_attn."
        for name, channels in (("q_proj", of_queries), ("k_proj", of_keys), ("v_proj", of_keys)):
            for part in ("weight", "bias"):
                if (key := f"{attention}{name}.{part}") in state:
                    state[key] = state[key].index_select(0, channels.to(state[key].device))
        key = f"{attention}o_proj.weight"
        state[key] = state[key].index_select(1, of_queries.to(state[key].device))
    return state


def _channels(groups: Sequence[int], width: int) -> Tensor:
    """The channels of the groups, where each group has `width` neighbouring ones."""
    return (torch.tensor(groups)[:, None] * width + torch.arange(width)).flatten()


def _class_and_config(
    model: PreTrainedModel, shape: ModelShape, kept_layers: Sequence[int] | None
) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class that holds a model of this shape, and its config."""
    old = model.config
    values = old.to_dict()
    if kept_layers is not None and values.get("layer_types"):
        values["layer_types"] = [values["layer_types"][layer] for layer in kept_layers]
    if old.model_type == "gpt2":
        if old.scale_attn_by_inverse_layer_idx:
            raise CopraError(
                "GPT-2 with scale_attn_by_inverse_layer_idx: attention depends on the layer's number, so "
                "layers cannot be removed. Take a model without this setting."
            )
        return type(model), _config(type(old), old, values | {"n_layer": len(shape.layers)})
    values = {name: value for name, value in values.items() if name != "layer_overrides"} | {
        "num_hidden_layers": len(shape.layers),
        "num_attention_heads": max(layer.query_heads for layer in shape.layers),
        "num_key_value_heads": max(layer.kv_heads for layer in shape.layers),
        "intermediate_size": max(layer.ffn for layer in shape.layers),
        "head_dim": shape.layers[0].head_dim,
    }
    alike = len(set(shape.layers)) == 1
    if old.model_type not in ("llama", "copra_llama"):
        if not alike:
            raise CopraError(
                f"{old.model_type}: its layers cannot differ in their numbers of heads. Use scope: uniform "
                "without protected layers, or take a Llama model."
            )
        return type(model), _config(type(old), old, values)
    if alike and shape.hidden % shape.layers[0].query_heads == 0:
        return LlamaForCausalLM, _config(LlamaConfig, old, values)
    overrides = [
        {
            "num_attention_heads": layer.query_heads,
            "num_key_value_heads": layer.kv_heads,
            "intermediate_size": layer.ffn,
        }
        for layer in shape.layers
    ]
    return CopraLlamaForCausalLM, _config(CopraLlamaConfig, old, values | {"layer_overrides": overrides})


def _config(
    config_class: type[PreTrainedConfig], old: PreTrainedConfig, values: Mapping[str, Any]
) -> PreTrainedConfig:
    values = {name: value for name, value in values.items() if name not in _IDENTITY}
    return config_class(**values, attn_implementation=old._attn_implementation)
