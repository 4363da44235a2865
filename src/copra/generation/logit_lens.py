"""The logit lens: decode the hidden states of latents with the LM head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import pad_id
from copra.generation.answering import GenerationOptions
from copra.generation.decode import Answer, cut, decode_greedily
from copra.generation.session import DecodingSession
from copra.models.checkpoint import Checkpoint
from copra.models.logits import read_logits


@dataclass(frozen=True)
class LatentReadout:
    """The most likely tokens of each latent with their probabilities, [n][k], and the answer generated."""

    tokens: list[list[int]]
    probabilities: list[list[float]]
    answer: Answer


@torch.inference_mode()
def logit_lens(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    decoding: GenerationSpec,
    options: GenerationOptions,
    k: int = 5,
) -> list[LatentReadout]:
    """Return the `k` most likely tokens at each latent of every prompt.

    A latent is made from the final-norm hidden state of the position before it; the LM head applied to that
    state gives the token that would have followed instead. With Jacobi iterations it is the state of the
    last one. `decoding` must have recurrent latents: embeddings have no hidden state to decode.
    """
    stop, pad = checkpoint.tokenizer.eos_token_id, pad_id(checkpoint.tokenizer)
    readouts = []
    for first in range(0, len(prompts), options.batch_size):
        batch = prompts[first : first + options.batch_size]
        session = DecodingSession(checkpoint.model, batch, decoding, pad, checkpoint.extra_modules)
        texts = decode_greedily(session, stop, options.max_new_tokens)
        assert session.latent_states is not None
        likely = read_logits(checkpoint.model, session.latent_states).float().softmax(-1).topk(k)
        rows = zip(likely.indices.tolist(), likely.values.tolist(), texts, strict=True)
        readouts += [LatentReadout(tokens, shares, cut(text, stop)) for tokens, shares, text in rows]
    return readouts
