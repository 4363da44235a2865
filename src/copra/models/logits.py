"""Compute logits from hidden states as the model does, with suppression of untrained tokens."""

from collections.abc import Collection
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SUPPRESSED = -1e4
"""The logit of a suppressed token. Its probability is exactly 0, and unlike with infinite logits no
difference is NaN in a Kullback-Leibler divergence."""


def read_logits(model: PreTrainedModel, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Return logits [..., V] of final-norm hidden states [..., d], by the model's LM head or another `head`.

    Tokens that the model's generation config suppresses get the logit `SUPPRESSED`: the latent markers until
    they are trained, see `copra.models.bases.start_markers`.

    Gemma's logits are capped after the LM head, c tanh(z / c), which no module of the model does.
    """
    logits = (model.get_output_embeddings() if head is None else head)(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    for first, last in _runs(model.generation_config.suppress_tokens or ()):
        # By slices: copying indices to the device would synchronize with it.
        logits[..., first : last + 1] = SUPPRESSED
    return logits


def _runs(tokens: Collection[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each run of consecutive token ids."""
    numbered = enumerate(sorted(tokens))
    runs = [[token for _, token in run] for _, run in groupby(numbered, lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1]) for run in runs]
