"""Hidden states of a batch in training, with latents fed back as input embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from copra.data.batch import Batch
from copra.data.sequences import LatentInput, Thought
from copra.models.attention import shortest_window
from copra.models.networks import joined, latent_feed
from copra.models.rollout import Span, rollout, spans


def hidden_states(
    model: PreTrainedModel,
    batch: Batch,
    thought: Thought,
    latent_input: LatentInput = "raw",
    *,
    projection: nn.Module | None = None,
    iterations: int = 0,
) -> Tensor:
    """Return final-norm hidden states at every position, [B, N, d], differentiable through all latents.

    With `thought` "hidden" latents are fed as `copra.models.rollout.spans` lists the passes. One after
    another, n latents take n+1 passes over N positions in total. Rows with fewer latents than the most feed
    their text in the same columns.
    """
    embeddings = model.get_input_embeddings()(batch.tokens)
    masks = _Masks(model, batch, embeddings)
    if thought == "embedding" or not batch.max_latents:
        return _read(model, embeddings, batch, 0, Uncached(config=model.config), masks)
    feed = latent_feed(model, latent_input, projection)
    cache = DynamicCache(config=model.config)
    if iterations:
        # A sliding-window layer drops positions before its window; each iteration removes positions again.
        cache.activate_past_recording()

    def read(span: Span, before: list[Tensor]) -> Tensor:
        inputs = embeddings[:, span.start : span.stop]
        if span.latents:
            column = span.start + span.latents
            made = feed(joined(before)).to(inputs.dtype)
            latents = torch.where(batch.latent[:, span.start : column, None], made, inputs[:, : span.latents])
            inputs = torch.cat([latents, inputs[:, span.latents :]], dim=1)
        if iterations and span.start:
            cache.crop(-batch.max_latents)
        return _read(model, inputs, batch, span.start, cache, masks)

    passes = spans(0, batch.first_latent, batch.max_latents, batch.tokens.shape[1], iterations)
    return torch.cat([states for _, states in rollout(passes, read)], dim=1)


class Uncached(DynamicCache):
    """A cache that stores nothing, for a single pass.

    With a cache, transformers treats a batch without a mask as plain sequences; without one it synchronizes
    with the device to check whether their positions are consecutive.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _Masks:
    """The attention masks of the passes over a batch, computed without synchronizing with the device.

    From a mask [B, N] transformers builds a new mask for each pass and synchronizes to check whether anything
    is masked. That is needed only if layers have windows shorter than the batch; otherwise one causal mask
    is built and sliced.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch, embeddings: Tensor):
        self.padding = batch.mask
        self.full_columns = batch.full_columns
        self.whole: Tensor | None = None
        if batch.full_columns < embeddings.shape[1] and embeddings.shape[1] <= shortest_window(model):
            whole = create_causal_mask(
                model.config, embeddings, batch.mask, past_key_values=None, allow_is_causal_skip=False
            )
            self.whole = whole if isinstance(whole, Tensor) else None

    def of(self, start: int, stop: int) -> Tensor | None:
        """Return the mask of a pass over columns `start` to `stop` that attends to all columns before them.

        It is [B, 1, T, stop], or [B, stop] if the window is shorter, or None without padding.
        """
        if stop <= self.full_columns:
            return None
        return self.padding[:, :stop] if self.whole is None else self.whole[:, :, start:stop, :stop]


def _read(
    model: PreTrainedModel, inputs: Tensor, batch: Batch, start: int, cache: DynamicCache, masks: _Masks
) -> Tensor:
    """Return final-norm hidden states [B, T, d] of one pass over embeddings [B, T, d] from column `start`."""
    stop = start + inputs.shape[1]
    return model.base_model(
        inputs_embeds=inputs,
        attention_mask=masks.of(start, stop),
        position_ids=batch.positions[:, start:stop],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
