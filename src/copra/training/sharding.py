"""Weights that are shared out over processes (FSDP2, Zhao 2023, arXiv 2304.11277), and whole again."""

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from copra.models.anatomy import blocks


def shard(objective: nn.Module, model: PreTrainedModel) -> None:
    """Share out a module's weights: layer by layer of the model within it, and all others together.

    A layer's weights are whole only while it computes; the others for one forward pass of the objective.
    """
    for block in blocks(model):
        fully_shard(block)
    fully_shard(objective)


def gather_full(value: Tensor) -> Tensor:
    """A tensor as it is without sharding; all processes must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def reshard_like(own: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, shared out as `own` is."""
    if not isinstance(own, DTensor):
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was done to it."""
    return isinstance(module, FSDPModule)
