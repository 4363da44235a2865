"""Find the decoder layers of a model, and read and replace hidden states between them.

This file travels with checkpoints (see `copra.models.thinking`), so it imports only torch and transformers.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

NAMES = ("layers", "h")
"""Names of the list of decoder layers in models without their LM head."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers from bottom to top, of a model with or without its LM head."""
    return getattr(model.base_model, name_of_layers(model))


def name_of_layers(model: PreTrainedModel) -> str:
    """Return the name of the list of decoder layers in a model without its LM head."""
    return next(name for name in NAMES if hasattr(model.base_model, name))


@contextlib.contextmanager
def before_blocks(model: PreTrainedModel, change: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `change(l, hidden)` with the input [B, T, d] of every block l of each pass, within this context.

    Its return value replaces the input; None leaves the input unchanged.
    """

    def hook(index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def call(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changed = change(index, arguments[0])
            return None if changed is None else (changed, *arguments[1:])

        return call

    handles = [block.register_forward_pre_hook(hook(i)) for i, block in enumerate(decoder_layers(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gather_positions(hidden: Tensor, columns: Tensor) -> Tensor:
    """Return the hidden state of each row at its own column: [B, T, d] and [B] give [B, d]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), columns]


def scatter_positions(hidden: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Return `hidden` [B, T, d] with each row's state at its own column [B] replaced by `values` [B, d]."""
    here = torch.arange(hidden.shape[1], device=hidden.device) == columns[:, None]
    return torch.where(here[:, :, None], values[:, None].to(hidden.dtype), hidden)
