"""The forward pass that all methods share: text, latents, and a loss only where a label is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from copra import processes
from copra.reasoning.layout import IGNORED, LatentInput, Sample, Thought

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
    """

    ids: list[str]
    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    latent: Tensor
    read: Tensor
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
        batch = Batch(**moved)
        # Found before the move: to find it on a GPU would wait for all work that is under way there.
        batch.__dict__ |= {"supervised": _moved(self.supervised, device), "unpadded": self.unpadded}
        return batch

    @cached_property
    def unpadded(self) -> int:
        """So many columns, from the first on, have no padding in any row."""
        return int(self.mask.amin(0).cumprod(0).sum())

    @cached_property
    def supervised(self) -> Tensor:
        """Places [S] in the flattened batch [B * N] whose next token is a label."""
        width = self.labels.shape[1]
        rows, columns = (self.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return rows * width + columns

    def __len__(self) -> int:
        return len(self.ids)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The copy to a GPU waits for nothing only from memory that is pinned."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def collate(samples: Sequence[Sample], pad: int, latents: int = 0) -> Batch:
    """Pad samples to one width, with the first latents below each other.

    Without latents every row starts in column 0 (padding on the right only); with latents the
    prefixes are padded on the left, so that one pass serves the i-th latent of all rows. The batch is read
    in as many passes as if a row had `latents` latents, should none have so many.
    """
    max_latents = max(latents, *(sample.n_latents for sample in samples))
    column = max(sample.first_latent for sample in samples) if max_latents else 0
    starts = [column - sample.first_latent if max_latents else 0 for sample in samples]
    ends = [start + len(sample.tokens) for start, sample in zip(starts, samples, strict=True)]
    width = max(column + max_latents, *ends)
    around = [(start, width - end) for start, end in zip(starts, ends, strict=True)]

    def laid_out(rows: Iterable[Sequence[int]], filler: int) -> Tensor:
        padded = zip(around, rows, strict=True)
        return torch.tensor([[filler] * left + [*row] + [filler] * right for (left, right), row in padded])

    tokens = laid_out((sample.tokens for sample in samples), pad)
    labels = laid_out((sample.labels for sample in samples), IGNORED)
    columns = torch.arange(width)
    begins, stops = torch.tensor(starts)[:, None], torch.tensor(ends)[:, None]
    mask = ((columns >= begins) & (columns < stops)).long()
    n_latents = torch.tensor([sample.n_latents for sample in samples])[:, None]
    latent = (columns >= column) & (columns < column + n_latents)
    read = [[start + place for place in sample.read] for start, sample in zip(starts, samples, strict=True)]
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        ids=[sample.id for sample in samples],
        tokens=tokens,
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        latent=latent,
        read=torch.tensor(read, dtype=torch.long),
        first_latent=column,
        max_latents=max_latents,
        teacher=collate(teachers, pad) if teachers else None,
        explained=tuple(sample.explained for sample in samples),
        latents_a_text=samples[0].latents_a_text,
    )


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
    if thought == "embedding" or not batch.max_latents:
        return _body(model, embeddings, batch, 0, None)
    feed = latent_feed(model, latent_input, projection)
    cache = DynamicCache(config=model.config)
    if iterations:
        return _jacobi(model, batch, embeddings, feed, cache, iterations)
    parts = [_body(model, embeddings[:, : batch.first_latent], batch, 0, cache)]
    for i in range(batch.max_latents):
        column = batch.first_latent + i
        last = i == batch.max_latents - 1
        stop = batch.tokens.shape[1] if last else column + 1
        previous = feed(parts[-1][:, -1:]).to(embeddings.dtype)
        here = torch.where(batch.latent[:, column, None, None], previous, embeddings[:, column : column + 1])
        inputs = torch.cat([here, embeddings[:, column + 1 : stop]], dim=1)
        parts.append(_body(model, inputs, batch, column, cache))
    return torch.cat(parts, dim=1)


def _jacobi(
    model: PreTrainedModel,
    batch: Batch,
    embeddings: Tensor,
    feed: Callable[[Tensor], Tensor],
    cache: DynamicCache,
    iterations: int,
) -> Tensor:
    """Hidden states [B, N, d] where the latents are iterated side by side."""
    first, stop = batch.first_latent, batch.first_latent + batch.max_latents
    latent = batch.latent[:, first:stop, None]
    hidden = _body(model, embeddings[:, :stop], batch, 0, cache)
    prefix, latents = hidden[:, :first], hidden[:, first:]
    for iteration in range(iterations):
        cache.crop(-batch.max_latents)
        previous = feed(torch.cat([prefix[:, -1:], latents[:, :-1]], dim=1)).to(embeddings.dtype)
        inputs = torch.where(latent, previous, embeddings[:, first:stop])
        if iteration == iterations - 1:
            rest = torch.cat([inputs, embeddings[:, stop:]], dim=1)
            return torch.cat([prefix, _body(model, rest, batch, first, cache)], dim=1)
        latents = _body(model, inputs, batch, first, cache)
    raise ValueError("iterations must be at least 1")


@torch.no_grad()
def embedding_norm(model: PreTrainedModel) -> Tensor:
    """The mean norm of the input embeddings, a scalar without gradient."""
    return model.get_input_embeddings().weight.float().norm(dim=-1).mean()


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


def _body(
    model: PreTrainedModel, inputs: Tensor, batch: Batch, start: int, cache: DynamicCache | None
) -> Tensor:
    """One pass of the decoder stack over the columns from `start` on whose embeddings are given."""
    stop = start + inputs.shape[1]
    return model.base_model(
        inputs_embeds=inputs,
        attention_mask=_attention_mask(model, batch, start, stop),
        position_ids=batch.positions[:, start:stop],
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


def _attention_mask(model: PreTrainedModel, batch: Batch, start: int, stop: int) -> Tensor:
    """The mask of a pass over the columns `start` to `stop`: [B, 1, T, S], True where a query may look, as
    transformers would make it of `batch.mask`; or that itself, [B, S], where transformers may leave it out.

    To find out whether it may, transformers reads the mask on the host, once a pass: a GPU would stop for it.
    """
    padding = batch.mask[:, :stop]
    if stop <= batch.unpadded or model.config._attn_implementation != "sdpa":
        return padding
    columns = torch.arange(stop, device=padding.device)
    return (columns <= columns[start:, None]) & padding[:, None, None, :].bool()


def supervised_logits(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Logits [S, V] in float32 at the S positions of `hidden` [B, N, d] whose next token is a label."""
    return model.get_output_embeddings()(hidden.flatten(0, 1)[batch.supervised]).float()


def label_loss(batch: Batch, logits: Tensor) -> tuple[Tensor, int]:
    """Sum of next-token cross-entropy over the supervised positions, from their logits [S, V], and S."""
    labels = batch.labels.flatten()[batch.supervised + 1]
    return functional.cross_entropy(logits, labels, reduction="sum"), len(logits)


def cross_entropy(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> tuple[Tensor, int]:
    """Sum of next-token cross-entropy over the supervised positions of `hidden` [B, N, d], and their number.

    Logits are computed at the supervised positions only, the loss in float32. Where they are many
    (`LOGITS_TOGETHER`), they are computed chunk by chunk, and again in the backward pass.
    """
    head = model.get_output_embeddings()
    rows = max(1, LOGITS_TOGETHER // head.out_features)
    # Sharded weights are not whole any more in the backward pass.
    if len(batch.supervised) <= rows or processes.count() > 1:
        return label_loss(batch, supervised_logits(model, batch, hidden))

    def loss_of(states: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), labels, reduction="sum")

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


def weighted(terms: Terms, weights: Mapping[str, float], counts: Mapping[str, int]) -> Tensor:
    """The loss: each weighted term divided by its count in the whole batch, of which this may be a part."""
    return sum(weight * terms[name][0] / max(counts[name], 1) for name, weight in weights.items())
