"""Read and replace hidden states between the blocks of a decoder."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.models.anatomy import blocks


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

    handles = [block.register_forward_pre_hook(hook(i)) for i, block in enumerate(blocks(model))]
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
