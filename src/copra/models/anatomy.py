"""Access to the layers and projections of a decoder, for the supported model types."""

from torch import nn
from transformers import PreTrainedModel

from copra.models.families import FAMILIES, LAYOUTS, family_of
from copra.models.families.family import Layout
from copra.models.hooks import decoder_layers
from copra.utils.errors import CopraError


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers from bottom to top, of a model with or without its LM head.

    Those of a looped model are its visits of layers (`copra.models.visits`).

    Raises:
        CopraError: the model type is not supported.
    """
    family_of(model.config.model_type)
    return decoder_layers(model)


def layout_of(block: nn.Module) -> Layout:
    """Return the names of a decoder layer's modules.

    Raises:
        CopraError: the layer has the modules of none of the supported families.
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
    """Return the output projection of a layer's attention; its input is [B, T, H*D], by head."""
    return block.get_submodule(layout_of(block).attention_output)


def ffn_output(block: nn.Module) -> nn.Module:
    """Return the down projection of a layer's FFN; its input is [B, T, I], the neurons' activations."""
    return block.get_submodule(layout_of(block).ffn_output)
