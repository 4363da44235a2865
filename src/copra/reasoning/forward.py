"""The forward pass that all methods share: text, latents, and a loss only where a label is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from copra import processes
from copra.models.attention import shortest_window
from copra.models.families import family_of
from copra.models.logits import read_logits
from copra.reasoning.layout import IGNORED, LatentInput, Sample, Thought, rounded_up

Terms = dict[str, tuple[Tensor, Tensor | int]]
"""The terms of a loss by name, each as a sum and the number of things that were summed."""

LOGITS_TOGETHER = 2**26
"""Logits that a loss holds at once, 256 MiB in float32; their softmax and their gradient are as large."""


@dataclass
class Batch:
    """Samples side by side, [B, N] each; `first_latent` is the same column in every row.

    `mask` is 1 on tokens and 0 on padding, `positions` counts the tokens of each row from 0, `latent`
    marks latent positions, `read` [B, R] are the columns that the loss looks at. `teacher` holds the
    teacher's sequences in the same order, `explained` the texts to be told from the latents.

    Asking the device for what its tensors hold makes the host wait for all work that it was given, so two
    things are kept that are known before: `supervised` [S] are the places in `tokens.flatten()` whose next
    token is a label, in order, and no row has padding in the first `full_columns` columns.
    """

    ids: list[str]
    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    latent: Tensor
    read: Tensor
    supervised: Tensor
    full_columns: int
    first_latent: int
    max_latents: int
    teacher: "Batch | None" = None
    explained: tuple[tuple[tuple[int, ...], ...], ...] = ()
    latents_a_text: int = 1

    def to(self, device: torch.device) -> "Batch":
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = _moved(value, device)
            elif isinstance(value, Batch):
                moved[name] = value.to(device)
        return Batch(**moved)

    def __len__(self) -> int:
        return len(self.ids)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The copy to a GPU waits for nothing only from memory that is pinned."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def collate(samples: Sequence[Sample], pad: int, latents: int = 0, multiple: int = 1) -> Batch:
    """Pad samples to one width, with the first latents below each other.

    Without latents every row starts in column 0 (padding on the right only); with latents the
    prefixes are padded on the left, so that one pass serves the i-th latent of all rows. The batch is read
    in as many passes as if a row had `latents` latents, should none have so many. The width, and the first
    latent's column, are rounded up to a multiple of `multiple` (see `width_multiple`).
    """
    max_latents = max(latents, *(sample.n_latents for sample in samples))
    column = rounded_up(max(sample.first_latent for sample in samples), multiple) if max_latents else 0
    starts = [column - sample.first_latent if max_latents else 0 for sample in samples]
    ends = [start + len(sample.tokens) for start, sample in zip(starts, samples, strict=True)]
    width = rounded_up(max(column + max_latents, *ends), multiple)
    columns = torch.arange(width)
    inside = (columns >= torch.tensor(starts)[:, None]) & (columns < torch.tensor(ends)[:, None])
    tokens = torch.full((len(samples), width), pad)
    tokens[inside] = torch.tensor([token for sample in samples for token in sample.tokens])
    labels = torch.full_like(tokens, IGNORED)
    labels[inside] = torch.tensor([label for sample in samples for label in sample.labels])
    mask = inside.long()
    last_latents = column + torch.tensor([sample.n_latents for sample in samples])
    read = [[start + place for place in sample.read] for start, sample in zip(starts, samples, strict=True)]
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        ids=[sample.id for sample in samples],
        tokens=tokens,
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        latent=(columns >= column) & (columns < last_latents[:, None]),
        read=torch.tensor(read, dtype=torch.long),
        supervised=functional.pad(labels[:, 1:] != IGNORED, (0, 1)).flatten().nonzero().flatten(),
        full_columns=0 if any(starts) else min(ends),
        first_latent=column,
        max_latents=max_latents,
        teacher=collate(teachers, pad, multiple=multiple) if teachers else None,
        explained=tuple(sample.explained for sample in samples),
        latents_a_text=samples[0].latents_a_text,
    )


def width_multiple(device: torch.device) -> int:
    """The multiple that batches on a device are padded to.

    A GPU's allocator reuses memory of sizes that it has seen, and its attention kernels copy masks whose
    rows do not begin at a multiple of 8 elements. On a CPU padding only costs.
    """
    return 8 if device.type == "cuda" else 1


def hidden_states(
    model: PreTrainedModel,
    batch: Batch,
    thought: Thought,
    latent_input: LatentInput = "raw",
    *,
    projection: nn.Module | None = None,
    iterations: int = 0,
) -> Tensor:
    """Final-norm hidden states at every position, [B, N, d], differentiable through all latents.

    With `thought` "hidden" (2412.06769, section 3): one cached pass over everything before the first
    latent; each latent's input embedding is the hidden state of the position before it; the last latent
    goes together with the rest. n latents take n+1 passes over N positions in total. Rows with fewer
    latents than the longest go along with their text in the same columns.

    With `iterations` T > 0 all latents are fed at once, T times (Jacobi iterations, 2506.18582): first
    as their token's embedding, then each as the hidden state that the pass before gave the position
    before it. The first T of them then are what the sequential chain makes them.
    """
    embeddings = model.get_input_embeddings()(batch.tokens)
    masks = _Masks(model, batch, embeddings)
    if thought == "embedding" or not batch.max_latents:
        return _body(model, embeddings, batch, 0, Uncached(config=model.config), masks)
    feed = latent_feed(model, latent_input, projection)
    cache = DynamicCache(config=model.config)
    if iterations:
        # A layer with a window forgets what lies before it, and each iteration takes positions back.
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
    """Hidden states [B, N, d] where the latents are iterated side by side."""
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
    """The mean norm of the input embeddings, a scalar without gradient: of what enters the first layer, where
    the embedding scales its rows."""
    embedding = model.get_input_embeddings()
    norm = embedding.weight.float().norm(dim=-1).mean()
    return norm * embedding.embed_scale if family_of(model.config.model_type).scaled_embedding else norm


def latent_feed(
    model: PreTrainedModel, latent_input: LatentInput, projection: nn.Module | None = None
) -> Callable[[Tensor], Tensor]:
    """How a hidden state [..., d] becomes a latent's input embedding [..., d]."""
    if latent_input == "projected":
        if projection is None:
            raise ValueError("projected latents need their projection")
        return projection
    if latent_input == "raw":
        return lambda hidden: hidden
    norm = embedding_norm(model)
    return lambda hidden: hidden * (norm / hidden.float().norm(dim=-1, keepdim=True)).to(hidden.dtype)


class Uncached(DynamicCache):
    """A cache that keeps nothing, for a single pass. Given a cache, transformers takes a batch without a mask
    for plain sequences; without one it asks the device whether their positions jump."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _Masks:
    """The attention masks of the passes over a batch, of which the device is asked nothing.

    From a mask [B, N] transformers would make each pass its own, once it has seen whether anything is
    masked. Only where layers attend within windows shorter than the batch it has to.
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
        """The mask of a pass over columns `start` to `stop` that attends to all before: [B, 1, T, stop], or
        [B, stop] (see above), or None without padding."""
        if stop <= self.full_columns:
            return None
        return self.padding[:, :stop] if self.whole is None else self.whole[:, :, start:stop, :stop]


def _body(
    model: PreTrainedModel, inputs: Tensor, batch: Batch, start: int, cache: DynamicCache, masks: _Masks
) -> Tensor:
    """One pass of the decoder stack over the columns from `start` on whose embeddings are given."""
    stop = start + inputs.shape[1]
    return model.base_model(
        inputs_embeds=inputs,
        attention_mask=masks.of(start, stop),
        position_ids=batch.positions[:, start:stop],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def supervised_logits(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Logits [S, V] in float32 at the S positions of `hidden` [B, N, d] whose next token is a label."""
    return read_logits(model, hidden.flatten(0, 1)[batch.supervised]).float()


def label_loss(batch: Batch, logits: Tensor) -> tuple[Tensor, int]:
    """Sum of next-token cross-entropy over the supervised positions, from their logits [S, V], and S."""
    targets = batch.labels.flatten()[batch.supervised + 1]
    return functional.cross_entropy(logits, targets, reduction="sum"), len(logits)


def cross_entropy(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> tuple[Tensor, int]:
    """Sum of next-token cross-entropy over the supervised positions of `hidden` [B, N, d], and their number.

    Logits are computed at the supervised positions only, the loss in float32. Where they are many
    (`LOGITS_TOGETHER`), they are computed chunk by chunk, and again in the backward pass.
    """
    rows = max(1, LOGITS_TOGETHER // model.get_output_embeddings().out_features)
    # Sharded weights are not whole any more in the backward pass.
    if len(batch.supervised) <= rows or processes.count() > 1:
        return label_loss(batch, supervised_logits(model, batch, hidden))

    def loss_of(states: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(read_logits(model, states).float(), labels, reduction="sum")

    states = hidden.flatten(0, 1)[batch.supervised].split(rows)
    labels = batch.labels.flatten()[batch.supervised + 1].split(rows)
    losses = [
        checkpoint(loss_of, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(states, labels, strict=True)
    ]
    return torch.stack(losses).sum(), len(batch.supervised)


@torch.no_grad()
def latent_norms(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Terms:
    """Norms for the log: of the hidden states that latents are made from, and of the embeddings."""
    if not batch.max_latents:
        return {}
    before = hidden[:, :-1][batch.latent[:, 1:]].float().norm(dim=-1)
    return {"hidden_norm": (before.sum(), len(before)), "embedding_norm": (embedding_norm(model), 1)}


def weighted(terms: Terms, weights: Mapping[str, float], counts: Mapping[str, float]) -> Tensor:
    """The loss: each weighted term divided by its count in the whole batch, of which this may be a part."""
    return sum(weight * terms[name][0] / (counts[name] or 1) for name, weight in weights.items())
