"""Where the parts of a decoder are, for the model types that copra knows."""

from torch import nn
from transformers import PreTrainedModel

from copra.errors import CopraError
from copra.models.shape import GPT2_LIKE, KNOWN, LLAMA_LIKE


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers from bottom to top, of a model with or without its LM head.

    Raises:
        CopraError: the model type is neither GPT-2 nor Llama-like.
    """
    kind = model.config.model_type
    if kind in GPT2_LIKE:
        return model.base_model.h
    if kind in LLAMA_LIKE:
        return model.base_model.layers
    raise CopraError(f"model_type {kind!r}: copra does not know where its layers are. It knows {KNOWN}.")


def attention_output(block: nn.Module) -> nn.Module:
    """The output projection of a layer's attention; its input is [B, T, H*D], the heads side by side."""
    return _part(block, "self_attn.o_proj", "attn.c_proj")


def ffn_output(block: nn.Module) -> nn.Module:
    """The down projection of a layer's FFN; its input is [B, T, I], the neurons' activations."""
    return _part(block, "mlp.down_proj", "mlp.c_proj")


def _part(block: nn.Module, *names: str) -> nn.Module:
    modules = dict(block.named_modules())
    for name in names:
        if name in modules:
            return modules[name]
    raise CopraError(
        f"{type(block).__name__}: no part named {' or '.join(names)}. copra knows the layers of {KNOWN}."
    )
