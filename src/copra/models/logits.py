"""Logits from hidden states, as the model itself computes them."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def read_logits(model: PreTrainedModel, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Logits [..., V] of final-norm hidden states [..., d], by the model's LM head or another `head`.

    Gemma's are capped after the LM head, c tanh(z / c), which no module of the model does.
    """
    logits = (model.get_output_embeddings() if head is None else head)(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
