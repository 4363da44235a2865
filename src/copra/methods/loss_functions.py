"""Losses as functions of hidden states and logits, and their weighted sum."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.methods.losses import LossValues
from copra.models.logits import read_logits
from copra.models.networks import embedding_norm
from copra.utils import processes

LOGITS_TOGETHER = 2**26
"""Maximum number of logits in memory at once: 256 MiB in float32. Softmax and gradient are as large."""


def supervised_logits(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Return float32 logits [S, V] at the S positions of `hidden` [B, N, d] whose next token is a label."""
    return read_logits(model, hidden.flatten(0, 1)[batch.supervised]).float()


def label_loss(batch: Batch, logits: Tensor) -> tuple[Tensor, int]:
    """Return the summed next-token cross-entropy of the supervised positions' logits [S, V], and S."""
    targets = batch.labels.flatten()[batch.supervised + 1]
    return functional.cross_entropy(logits, targets, reduction="sum"), len(logits)


def cross_entropy(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> tuple[Tensor, int]:
    """Return the summed next-token cross-entropy at the S supervised positions of `hidden` [B, N, d], and S.

    Logits are computed only at the supervised positions, the loss in float32. More logits than
    `LOGITS_TOGETHER` are computed in chunks, and recomputed in the backward pass.
    """
    rows = max(1, LOGITS_TOGETHER // model.get_output_embeddings().out_features)
    # Sharded weights are no longer gathered in the backward pass, where chunks would be recomputed.
    if len(batch.supervised) <= rows or processes.world_size() > 1:
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


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of logits [S, V], summed over S.

    The gradients of softened predictions shrink with 1/T^2 (1503.02531, section 2); the factor compensates.
    """
    learned, taught = (functional.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * functional.kl_div(learned, taught, reduction="sum", log_target=True)


@torch.no_grad()
def latent_norms(model: PreTrainedModel, batch: Batch, hidden: Tensor) -> LossValues:
    """Return norms for the log: of the hidden states that latents are made from, and of the embeddings."""
    if not batch.max_latents:
        return {}
    before = hidden[:, :-1][batch.latent[:, 1:]].float().norm(dim=-1)
    return {"hidden_norm": (before.sum(), len(before)), "embedding_norm": (embedding_norm(model), 1)}


def weighted(values: LossValues, weights: Mapping[str, float], counts: Mapping[str, float]) -> Tensor:
    """Return the loss: the weighted sum of the terms, each divided by its count in the whole batch.

    The values may be those of a micro-batch.
    """
    parts = (weight * values[name][0] / (counts[name] or 1) for name, weight in weights.items())
    return functools.reduce(torch.add, parts)
