"""Decoding with a compiled model: on a GPU one launch per token instead of thousands."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.cache import FixedLayer, fixed_cache, whole_blocks


class Compiled:
    """A model's pass over one position per row, compiled for one batch size.

    All batches share one cache. Compiling takes seconds to minutes, at the first position after a prompt. It
    saves time if many questions of one shape follow. Batches with fewer rows must be filled up.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, length: int, backend: str = "inductor"):
        """`length` is the maximum number of positions per row, see `positions`."""
        # Each model recompiles the code, and PyTorch limits recompilations: start from an empty cache.
        torch.compiler.reset()
        self.model = model
        self.batch_size = batch_size
        self.length = length
        self.cache = fixed_cache(model, length)
        # "reduce-overhead" records a CUDA graph, which is one launch.
        mode = "reduce-overhead" if backend == "inductor" else None
        self._step = torch.compile(self._pass, backend=backend, mode=mode, dynamic=False)
        self._given: list[Tensor] = []

    def begin(self) -> Cache:
        """Empty the cache and return it."""
        self.cache.reset()
        return self.cache

    def body(self, inputs: Tensor, mask: Tensor, positions: Tensor, stop: int) -> Tensor:
        """Return final-norm hidden states [B, T, d] of one cached pass over input embeddings [B, T, d].

        The pass is at `positions` [B, T], of columns up to `stop`; `mask` [B, length] is false on padding.
        """
        # The first pass allocates the cache, which must not happen inside compiled code.
        if inputs.shape[1] > 1 or not self.cache.is_initialized:
            self._show(stop)
            hidden = self._pass(inputs, mask[:, :stop], positions)
            self._show(None)
            return hidden
        if not self._given:
            self._given = [
                torch.empty(each.shape, dtype=each.dtype, device=each.device)
                for each in (inputs, mask, positions)
            ]
            for each in self._given:
                torch._dynamo.mark_static_address(each)
        # Code is compiled for tensors of these strides, and a graph recorded for these addresses.
        for each, given in zip((inputs, mask, positions), self._given, strict=True):
            given.copy_(each)
        torch.compiler.cudagraph_mark_step_begin()
        # The next replay of a CUDA graph overwrites this one's output.
        return self._step(*self._given).clone()

    def _show(self, visible: int | None) -> None:
        for layer in self.cache.layers:
            assert isinstance(layer, FixedLayer)
            layer.visible = visible

    def _pass(self, inputs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self.model.base_model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state


def positions(
    prompts: Sequence[Sequence[int]],
    decoding: GenerationSpec | None,
    prefix: Sequence[int],
    max_new_tokens: int,
) -> int:
    """Return the number of positions of the longest prompt with its answer.

    It is rounded up, so that prompts of similar length share compiled code.
    """
    added = decoding.added_tokens if decoding else 0
    return whole_blocks(len(prefix) + max(map(len, prompts), default=0) + added + max_new_tokens)
