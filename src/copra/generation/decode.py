"""Greedy decoding of prompts, batched and cached, with or without latents."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.compiled import Compiled
from copra.generation.session import DecodingSession, read_prefix
from copra.models.shape import shape_of
from copra.utils import processes

Ends = Callable[[Sequence[int]], int | None]
"""Function from generated tokens to the number of tokens up to a stop text, or None."""

# Tokens between two checks of which rows have ended. On a GPU a check waits for all work to finish, and stop
# texts require a search of the decoded text.
CHECK_EVERY = {"cuda": 8, "text": 8}


@dataclass(frozen=True)
class Answer:
    """The generated tokens of one prompt, including the end token if it was generated."""

    tokens: list[int]
    hit_length_limit: bool


GetOrGenerate = Callable[[Any, Callable[[], list[Answer]]], list[Answer]]
"""Function that returns the cached answers of a batch, generating and storing them on a miss. Its key is a
JSON value with everything except the model that the answers depend on."""


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: GenerationSpec | None,
    *,
    stop: int,
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    force_length: bool = False,
    extra_modules: nn.ModuleDict | None = None,
    prefix: Sequence[int] = (),
    prefix_cache: Cache | None = None,
    ends: Ends | None = None,
    answer_cache: GetOrGenerate | None = None,
    compiled: Compiled | None = None,
    latents: Tensor | None = None,
) -> list[Answer]:
    """Return a greedy answer to every prompt, in the order of the prompts.

    Prompts of similar length share a batch. `force_length` generates `max_new_tokens` for every prompt
    without stopping, for timing. `extra_modules` are those that the decoding needs. `prefix` precedes every
    prompt and is read once, or not at all if `prefix_cache` is its cache from `read_prefix`. `ends` finds the
    end of texts without an end token. `answer_cache` caches the answers of each batch. `compiled` is the
    model compiled by `copra.generation.compiled`, for batches of at most its size and prompts of at most its
    length. `latents` [N, n, d] are the embeddings fed at the latent positions of each prompt, on any device
    (None: the model's own).

    Several processes (`copra.utils.processes`) share the same batches: all must call this function, and each
    gets all answers.
    """
    if prefix and _is_past_window(model, prompts, decoding, len(prefix) + max_new_tokens):
        # Padding between the prefix and shorter prompts would displace tokens from a window.
        prompts, prefix = [[*prefix, *prompt] for prompt in prompts], ()
    depends = [decoding and decoding.to_json(), list(prefix), stop, max_new_tokens, force_length]
    shared = cache(
        lambda: (read_prefix(model, prefix) if prefix_cache is None else prefix_cache) if prefix else None
    )
    answers: dict[int, Answer] = {}
    for batch in processes.shard(batches_by_length(prompts, batch_size)):

        def answer(batch: list[int] = batch) -> list[Answer]:
            empty = 0 if compiled is None else compiled.batch_size - len(batch)
            filled = [*batch, *batch[:1] * empty]
            asked = [prompts[i] for i in filled]
            given = None if latents is None else latents[filled]
            session = DecodingSession(model, asked, decoding, pad, extra_modules, shared(), compiled, given)
            tokens = decode_greedily(session, stop, max_new_tokens, force_length, ends)
            return [cut(row, stop, force_length, ends) for row in tokens[: len(batch)]]

        if answer_cache is None:
            found = answer()
        else:
            given = [] if latents is None else [_digest(latents[batch])]
            found = answer_cache([*depends, *given, [prompts[i] for i in batch]], answer)
        answers |= zip(batch, found, strict=True)
    answers = {i: found for part in processes.all_gather(answers) for i, found in part.items()}
    return [answers[i] for i in range(len(prompts))]


def batches_by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the indices of prompts in batches of similar length, the shortest first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's values."""
    return hashlib.sha256(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _is_past_window(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: GenerationSpec | None, more: int
) -> bool:
    """True if the longest prompt, the decoding's own tokens and `more` tokens exceed a layer's window."""
    added = decoding.added_tokens if decoding else 0
    longest = max(map(len, prompts), default=0) + added + more
    windows = (layer.window for layer in shape_of(model.config.to_dict()).layers)
    return any(window is not None and longest > window for window in windows)


def cut(tokens: list[int], stop: int, force_length: bool = False, ends: Ends | None = None) -> Answer:
    """Return the answer: generated tokens up to and including the end of their text."""
    if force_length:
        return Answer(tokens, hit_length_limit=True)
    length = tokens.index(stop) + 1 if stop in tokens else None
    if ends is not None and (found := ends(tokens[:length])) is not None:
        length = found
    return Answer(tokens[:length], hit_length_limit=length is None)


def decode_greedily(
    session: DecodingSession,
    stop: int,
    max_new_tokens: int,
    force_length: bool = False,
    ends: Ends | None = None,
) -> list[list[int]]:
    """Return the generated tokens of each prompt, uncut: they may continue after the end of the text."""
    logits = session.prefill()
    n_rows, device = len(logits), logits.device
    generated = torch.full((n_rows, max_new_tokens), stop, device=device)
    check_every = CHECK_EVERY["text"] if ends else CHECK_EVERY.get(device.type, 1)
    alive = torch.arange(n_rows, device=device)
    ended = torch.zeros(n_rows, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        generated[alive, step] = token
        ended |= token == stop
        if step == max_new_tokens - 1:
            break
        if not force_length and step % check_every == 0:
            if ends:
                texts = generated[alive, : step + 1].tolist()
                ended |= torch.tensor([ends(text) is not None for text in texts], device=device)
            going = (~ended).nonzero().flatten()
            if not len(going):
                break
            if len(going) <= len(ended) // 2 and session.compiled is None:
                session.select_rows(going)
                alive, ended, token = alive[going], ended[going], token[going]
        logits = session.step(token)
    return generated.tolist()
