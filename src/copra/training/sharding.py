"""Shard weights over processes (FSDP2, Zhao 2023, arXiv 2304.11277) and gather them."""

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from copra.models.anatomy import blocks


def shard(loss_module: nn.Module, model: PreTrainedModel) -> None:
    """Shard a module's weights: one group per layer of the model within it, one group for all others.

    A layer's weights are gathered only while it computes, the others for one forward pass.
    """
    # Children, since a looped model visits a layer more than once.
    for block in blocks(model).children():
        fully_shard(block)
    fully_shard(loss_module)


def gather_full(value: Tensor) -> Tensor:
    """Return a tensor without sharding. All processes must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def reshard_like(own: Tensor, value: Tensor) -> Tensor:
    """Return a full tensor, sharded as `own` is."""
    if not isinstance(own, DTensor):
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    """True if `shard` was applied to the module."""
    return isinstance(module, FSDPModule)
