"""Where the parts of a decoder are, for the model types that copra knows."""

from torch import nn
from transformers import PreTrainedModel

from copra.models.families import FAMILIES, LAYOUTS, family_of
from copra.models.families.family import Layout
from copra.utils.errors import CopraError


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers from bottom to top, of a model with or without its LM head.

    Raises:
        CopraError: the model type is not known.
    """
    return getattr(model.base_model, family_of(model.config.model_type).blocks)


def layout_of(block: nn.Module) -> Layout:
    """The names of a decoder layer's parts.

    Raises:
        CopraError: it is put together as in none of the known families.
    """
    names = {name for name, _ in block.named_modules()}
    for layout in LAYOUTS:
        if names.issuperset(layout.names):
            return layout
    raise CopraError(
        f"{type(block).__name__}: it has no parts such as {LAYOUTS[0].attention_output}. Take a model of one "
        f"of the types {', '.join(FAMILIES)}."
    )


def attention_output(block: nn.Module) -> nn.Module:
    """The output projection of a layer's attention; its input is [B, T, H*D], the heads side by side."""
    return block.get_submodule(layout_of(block).attention_output)


def ffn_output(block: nn.Module) -> nn.Module:
    """The down projection of a layer's FFN; its input is [B, T, I], the neurons' activations."""
    return block.get_submodule(layout_of(block).ffn_output)
