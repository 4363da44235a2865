"""Answering with a compiled model: on a GPU one launch a token in place of thousands."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.cache import fixed_cache, whole_blocks


class Compiled:
    """A model's pass over one position of each row, compiled for one batch size and one cache, which batch
    after batch uses.

    Compiling takes from seconds to minutes, at the first position after a prompt. It pays where many
    questions of one shape follow; batches with fewer rows are filled up.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, length: int, backend: str = "inductor"):
        """`length`: the most positions that a row may have, see `positions`."""
        # Code is compiled again for each model, and only so often before PyTorch gives up: start anew.
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
        """The cache, emptied."""
        self.cache.reset()
        return self.cache

    def body(self, inputs: Tensor, mask: Tensor, positions: Tensor, stop: int) -> Tensor:
        """One cached pass over input embeddings [B, T, d] at `positions` [B, T], of columns up to `stop`;
        `mask` [B, length] is false on padding. Returns the final-norm hidden states [B, T, d]."""
        # The cache takes its memory in the first pass, which must not be inside compiled code.
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
        # The next replay of a CUDA graph writes its output where this one's is.
        return self._step(*self._given).clone()

    def _show(self, visible: int | None) -> None:
        for layer in self.cache.layers:
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
    """Positions that the longest of these prompts needs with its answer, rounded up: prompts of about the
    same length then share compiled code."""
    thought = (
        0 if decoding is None else len(decoding.prefix_ids) + decoding.latents + len(decoding.suffix_ids)
    )
    return whole_blocks(len(prefix) + max(map(len, prompts), default=0) + thought + max_new_tokens)
