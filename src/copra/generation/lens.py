"""The logit lens: decode the hidden states of latents with the LM head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.decode import Answer, cut, generate
from copra.generation.session import DecodingSession
from copra.models.logits import read_logits


@dataclass(frozen=True)
class LatentReadout:
    """The most likely tokens of each latent with their probabilities, [n][k], and the answer generated."""

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
    extra_modules: nn.ModuleDict | None = None,
) -> list[LatentReadout]:
    """Return the `k` most likely tokens at each latent of every prompt, `batch_size` prompts at a time.

    A latent is made from the final-norm hidden state of the position before it; the LM head applied to that
    state gives the token that would have followed instead. With Jacobi iterations it is the state of the
    last one. `decoding` must have recurrent latents: embeddings have no hidden state to decode.
    """
    seen = []
    for first in range(0, len(prompts), batch_size):
        run = Run(model, prompts[first : first + batch_size], decoding, pad, extra_modules)
        states = run.think()
        said = read_logits(model, states).float().softmax(-1).topk(k)
        texts = generate(run, run.conclude(states), stop, max_new_tokens)
        rows = zip(said.indices.tolist(), said.values.tolist(), texts, strict=True)
        seen += [LatentReadout(tokens, shares, cut(text, stop)) for tokens, shares, text in rows]
    return seen
