"""Logits from hidden states, as the model itself computes them, less tokens that it was never trained on."""

from collections.abc import Collection
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SUPPRESSED = -1e4
"""The logit of a suppressed token: its probability is exactly 0, and no difference of logits is NaN, as with
infinite ones in a Kullback-Leibler divergence."""


def read_logits(model: PreTrainedModel, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Logits [..., V] of final-norm hidden states [..., d], by the model's LM head or another `head`.

    Tokens that the model's generation config suppresses get the logit `SUPPRESSED`: the latent markers until
    they are trained, see `copra.models.bases.start_markers`.

    Gemma's are capped after the LM head, c tanh(z / c), which no module of the model does.
    """
    logits = (model.get_output_embeddings() if head is None else head)(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    for first, last in _runs(model.generation_config.suppress_tokens or ()):
        # By a slice: indices would have to go to the device, which waits for them.
        logits[..., first : last + 1] = SUPPRESSED
    return logits


def _runs(tokens: Collection[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of successive tokens."""
    numbered = enumerate(sorted(tokens))
    runs = [[token for _, token in run] for _, run in groupby(numbered, lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1]) for run in runs]
