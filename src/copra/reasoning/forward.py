"""The forward pass that all methods share: text, latents, and a loss only where a label is."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from copra.reasoning.layout import IGNORED, LatentInput, Sample, Thought


@dataclass
class Batch:
    """Samples side by side, [B, N] each; `first_latent` is the same column in every row.

    `mask` is 1 on tokens and 0 on padding, `positions` counts the tokens of each row from 0, `latent`
    marks latent positions.
    """

    ids: list[str]
    tokens: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor
    latent: Tensor
    first_latent: int
    max_latents: int

    def to(self, device: torch.device) -> "Batch":
        moved = {
            field.name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return Batch(**moved)

    def __len__(self) -> int:
        return len(self.ids)


def collate(samples: Sequence[Sample], pad: int) -> Batch:
    """Pad samples to one width, with the first latents below each other.

    Without latents every row starts in column 0 (padding on the right only); with latents the
    prefixes are padded on the left, so that one pass serves the i-th latent of all rows.
    """
    max_latents = max(sample.n_latents for sample in samples)
    column = max(sample.first_latent for sample in samples) if max_latents else 0
    starts = [column - sample.first_latent if max_latents else 0 for sample in samples]
    width = max(start + len(sample.tokens) for start, sample in zip(starts, samples, strict=True))
    tokens = torch.full((len(samples), width), pad)
    labels = torch.full_like(tokens, IGNORED)
    mask = torch.zeros_like(tokens)
    latent = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (start, sample) in enumerate(zip(starts, samples, strict=True)):
        span = slice(start, start + len(sample.tokens))
        tokens[row, span] = torch.tensor(sample.tokens)
        labels[row, span] = torch.tensor(sample.labels)
        mask[row, span] = 1
        latent[row, column : column + sample.n_latents] = True
    return Batch(
        ids=[sample.id for sample in samples],
        tokens=tokens,
        mask=mask,
        positions=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        latent=latent,
        first_latent=column,
        max_latents=max_latents,
    )


def hidden_states(
    model: PreTrainedModel, batch: Batch, thought: Thought, latent_input: LatentInput = "raw"
) -> Tensor:
    """Final-norm hidden states at every position, [B, N, d], differentiable through all latents.

    With `thought` "hidden" (2412.06769, section 3): one cached pass over everything before the first
    latent; each latent's input embedding is the hidden state of the position before it; the last latent
    goes together with the rest. n latents take n+1 passes over N positions in total. Rows with fewer
    latents than the longest go along with their text in the same columns.
    """
    embeddings = model.get_input_embeddings()(batch.tokens)
    if thought == "embedding" or not batch.max_latents:
        return _body(model, embeddings, batch, 0, None)
    norm = embedding_norm(model) if latent_input == "scaled" else None
    cache = DynamicCache(config=model.config)
    parts = [_body(model, embeddings[:, : batch.first_latent], batch, 0, cache)]
    for i in range(batch.max_latents):
        column = batch.first_latent + i
        last = i == batch.max_latents - 1
        stop = batch.tokens.shape[1] if last else column + 1
        previous = latent_embeddings(parts[-1][:, -1:], norm).to(embeddings.dtype)
        here = torch.where(batch.latent[:, column, None, None], previous, embeddings[:, column : column + 1])
        inputs = torch.cat([here, embeddings[:, column + 1 : stop]], dim=1)
        parts.append(_body(model, inputs, batch, column, cache))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def embedding_norm(model: PreTrainedModel) -> Tensor:
    """The mean norm of the input embeddings, a scalar without gradient."""
    return model.get_input_embeddings().weight.float().norm(dim=-1).mean()


def latent_embeddings(hidden: Tensor, norm: Tensor | None) -> Tensor:
    """Hidden states as input embeddings: brought to `norm`, or as they are (None)."""
    if norm is None:
        return hidden
    return hidden * (norm / hidden.float().norm(dim=-1, keepdim=True)).to(hidden.dtype)


def _body(
    model: PreTrainedModel, inputs: Tensor, batch: Batch, start: int, cache: DynamicCache | None
) -> Tensor:
    """One pass of the decoder stack over the columns from `start` on whose embeddings are given."""
    stop = start + inputs.shape[1]
    return model.base_model(
        inputs_embeds=inputs,
        attention_mask=batch.mask[:, :stop],
        position_ids=batch.positions[:, start:stop],
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


def cross_entropy(
    model: nn.Module, batch: Batch, thought: Thought, latent_input: LatentInput = "raw"
) -> tuple[Tensor, Tensor]:
    """Sum of next-token cross-entropy over the supervised positions, and their number.

    Logits are computed at the supervised positions only, the loss in float32.
    """
    hidden = hidden_states(model, batch, thought, latent_input)
    supervised = batch.labels[:, 1:] != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][supervised]).float()
    targets = batch.labels[:, 1:][supervised]
    return functional.cross_entropy(logits, targets, reduction="sum"), supervised.sum()
