"""Key/value caches for decoding, in memory that is not copied for every token."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

from copra.data.sequences import rounded_up
from copra.models.attention import shortest_window
from copra.utils.errors import CopraError

BLOCK = 64
"""Number of positions by which memory grows."""


class BlockLayer(DynamicLayer):
    """A layer of a `DynamicCache` that grows by blocks of positions, without gradients.

    New keys and values are written after the others, which are copied only when a block is full.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.room is None or stop > self.room[0].shape[-2]:
            self.room = (_room(key_states, stop), _room(value_states, stop))
            if start:
                assert self.keys is not None
                assert self.values is not None
                self.room[0][:, :, :start] = self.keys
                self.room[1][:, :, :start] = self.values
        self.room[0][:, :, start:stop] = key_states
        self.room[1][:, :, start:stop] = value_states
        self.keys, self.values = self.room[0][:, :, :stop], self.room[1][:, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = None


class FixedLayer(StaticLayer):
    """A layer of a `StaticCache` from which the last positions can be removed.

    If `visible` is a number, a pass attends to only that many positions, from the first on: a prompt then
    does not attend to the empty positions of its answer.
    """

    visible: int | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.visible is None:
            return keys, values
        return keys[:, :, : self.visible], values[:, :, : self.visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.max_cache_len if self.visible is None else self.visible), 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last positions; their number is negative, as in other caches.

        Their contents are masked, as everything after the last position is, until they are overwritten.
        """
        self.cumulative_length.add_(tokens_to_remove)


def growing_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache for one batch."""
    cache = DynamicCache(config=model.config)
    if not any(cache.is_sliding):
        cache.layers = [BlockLayer() for _ in cache.layers]
    return cache


def fixed_cache(model: PreTrainedModel, length: int) -> Cache:
    """Return an empty cache of `length` positions at fixed addresses, reused for one batch after another.

    Raises:
        CopraError: a layer attends to fewer positions.
    """
    window = shortest_window(model)
    if window < length:
        raise CopraError(
            f"compile: an answer may take {length} positions, and a layer of this model attends to the last "
            f"{window:g} only, for which there is no compiled form. Set evaluation.compile and "
            "latency.compile to false, or lower evaluation.max_new_tokens."
        )
    return Cache(layers=[FixedLayer(max_cache_len=length) for _ in DynamicCache(config=model.config).layers])


def start_with(cache: Cache, prefix: Cache, rows: int) -> None:
    """Copy the cache of one row, the common prefix, to each of `rows` rows of an empty cache."""
    for layer, known in zip(cache.layers, prefix.layers, strict=True):
        assert isinstance(layer, CacheLayerMixin)
        assert isinstance(known, CacheLayerMixin)
        assert known.keys is not None
        assert known.values is not None
        layer.update(known.keys.expand(rows, -1, -1, -1), known.values.expand(rows, -1, -1, -1))


def whole_blocks(length: int) -> int:
    """Return a number of positions, rounded up to whole blocks."""
    return rounded_up(length, BLOCK)


def widened(mask: Tensor, length: int) -> Tensor:
    """Return a mask [B, N] extended to at least `length` columns, true in the new ones."""
    return functional.pad(mask, (0, whole_blocks(length) - mask.shape[1]), value=True)


def _room(states: Tensor, length: int) -> Tensor:
    shape = (*states.shape[:-2], whole_blocks(length), states.shape[-1])
    return torch.empty(shape, dtype=states.dtype, device=states.device)
