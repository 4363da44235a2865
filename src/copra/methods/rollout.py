"""The latent rollout: compute hidden states of a batch, feeding latents back as input embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from copra.data.batch import Batch
from copra.data.sequences import LatentInput, Thought
from copra.models.attention import shortest_window
from copra.models.families import family_of


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

    With `thought` "hidden" (2412.06769, section 3): one cached pass covers everything before the first
    latent; each latent's input embedding is the hidden state of the position before it; the last latent
    shares a pass with all columns after it. n latents take n+1 passes over N positions in total. Rows with
    fewer latents than the row with the most feed their text in the same columns.

    With `iterations` T > 0 all latents are fed at once, T times (Jacobi iterations, 2506.18582): first
    as their token's embedding, then each as the hidden state that the previous pass computed at the
    position before it. The first T latents then equal those of the sequential chain.
    """
    embeddings = model.get_input_embeddings()(batch.tokens)
    masks = _Masks(model, batch, embeddings)
    if thought == "embedding" or not batch.max_latents:
        return _body(model, embeddings, batch, 0, Uncached(config=model.config), masks)
    feed = latent_feed(model, latent_input, projection)
    cache = DynamicCache(config=model.config)
    if iterations:
        # A sliding-window layer drops positions before its window; each iteration removes positions again.
        cache.activate_past_recording()
        return _jacobi(model, batch, embeddings, feed, cache, masks, iterations)
    parts = [_body(model, embeddings[:, : batch.first_latent], batch, 0, cache, masks)]
    for i in range(batch.max_latents):
        column = batch.first_latent + i
        last = i == batch.max_latents - 1
        stop = batch.tokens.shape[1] if last else column + 1
        previous = feed(parts[-1][:, -1:]).to(embeddings.dtype)
        here = torch.where(batch.latent[:, column, None, None], previous, embeddings[:, column : column + 1])
        inputs = torch.cat([here, embeddings[:, column + 1 : stop]], dim=1)
        parts.append(_body(model, inputs, batch, column, cache, masks))
    return torch.cat(parts, dim=1)


def _jacobi(
    model: PreTrainedModel,
    batch: Batch,
    embeddings: Tensor,
    feed: Callable[[Tensor], Tensor],
    cache: DynamicCache,
    masks: "_Masks",
    iterations: int,
) -> Tensor:
    """Return hidden states [B, N, d] after Jacobi iterations over all latents in parallel."""
    first, stop = batch.first_latent, batch.first_latent + batch.max_latents
    latent = batch.latent[:, first:stop, None]
    hidden = _body(model, embeddings[:, :stop], batch, 0, cache, masks)
    prefix, latents = hidden[:, :first], hidden[:, first:]
    for iteration in range(iterations):
        cache.crop(-batch.max_latents)
        previous = feed(torch.cat([prefix[:, -1:], latents[:, :-1]], dim=1)).to(embeddings.dtype)
        inputs = torch.where(latent, previous, embeddings[:, first:stop])
        if iteration == iterations - 1:
            rest = torch.cat([inputs, embeddings[:, stop:]], dim=1)
            return torch.cat([prefix, _body(model, rest, batch, first, cache, masks)], dim=1)
        latents = _body(model, inputs, batch, first, cache, masks)
    raise ValueError("iterations must be at least 1")


@torch.no_grad()
def embedding_norm(model: PreTrainedModel) -> Tensor:
    """Return the mean norm [] of the input embeddings, without gradient, scaled by `embed_scale` if the
    family scales its embeddings."""
    embedding = model.get_input_embeddings()
    norm = embedding.weight.float().norm(dim=-1).mean()
    return norm * embedding.embed_scale if family_of(model.config.model_type).scaled_embedding else norm


def latent_feed(
    model: PreTrainedModel, latent_input: LatentInput, projection: nn.Module | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the function from a hidden state [..., d] to a latent's input embedding [..., d]."""
    if latent_input == "projected":
        if projection is None:
            raise ValueError("projected latents need their projection")
        return projection
    if latent_input == "raw":
        return lambda hidden: hidden
    norm = embedding_norm(model)
    return lambda hidden: hidden * (norm / hidden.float().norm(dim=-1, keepdim=True)).to(hidden.dtype)


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
        self.whole = None
        if batch.full_columns < embeddings.shape[1] and embeddings.shape[1] <= shortest_window(model):
            self.whole = create_causal_mask(
                model.config, embeddings, batch.mask, past_key_values=None, allow_is_causal_skip=False
            )

    def of(self, start: int, stop: int) -> Tensor | None:
        """Return the mask of a pass over columns `start` to `stop` that attends to all columns before them:
        [B, 1, T, stop], or [B, stop] if the window is shorter, or None without padding."""
        if stop <= self.full_columns:
            return None
        return self.padding[:, :stop] if self.whole is None else self.whole[:, :, start:stop, :stop]


def _body(
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
