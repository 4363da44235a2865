"""Logits from hidden states, as the model itself computes them."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


def read_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [..., V] of final-norm hidden states [..., d].

    Gemma's are capped after the LM head, c tanh(z / c), which no module of the model does.
    """
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
