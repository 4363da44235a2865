"""What latents would say: their hidden states through the LM head (the logit lens)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.decode import Answer, cut, generate
from copra.generation.run import Run
from copra.models.logits import read_logits


@dataclass(frozen=True)
class LatentReadout:
    """The likeliest tokens of each latent with their probabilities, [n][k], and the answer that followed."""

    tokens: list[list[int]]
    probabilities: list[list[float]]
    answer: Answer


@torch.inference_mode()
def look(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: GenerationSpec,
    *,
    stop: int,
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    k: int = 5,
    parts: nn.ModuleDict | None = None,
) -> list[LatentReadout]:
    """The `k` likeliest tokens at each latent of every prompt, `batch_size` prompts side by side.

    A latent is made from the final-norm hidden state of the position before it; read through the LM
    head, that state says which token would have come instead. In Jacobi iterations it is the state of
    the last one. Embeddings in the place of thoughts have nothing to say: `decoding` has to loop.
    """
    seen = []
    for first in range(0, len(prompts), batch_size):
        run = Run(model, prompts[first : first + batch_size], decoding, pad, parts)
        states = run.think()
        said = read_logits(model, states).float().softmax(-1).topk(k)
        texts = generate(run, run.conclude(states), stop, max_new_tokens)
        rows = zip(said.indices.tolist(), said.values.tolist(), texts, strict=True)
        seen += [LatentReadout(tokens, shares, cut(text, stop)) for tokens, shares, text in rows]
    return seen
