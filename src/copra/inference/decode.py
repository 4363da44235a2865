"""Greedy decoding, batched and cached, with or without latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from copra.reasoning.forward import embedding_norm, latent_embeddings
from copra.reasoning.layout import Decoding

# Tokens between two looks at which rows have ended: on a GPU a look waits for all work to finish.
LOOK_EVERY = {"cuda": 8}


@dataclass(frozen=True)
class Answer:
    """The generated tokens of one prompt, the end token included where it was reached."""

    tokens: list[int]
    hit_length_limit: bool


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding | None,
    *,
    stop: int,
    pad: int,
    max_new_tokens: int,
    batch_size: int,
    force_length: bool = False,
) -> list[Answer]:
    """Answer every prompt greedily; the order of the answers is that of the prompts.

    Prompts of similar length share a batch. `force_length` generates `max_new_tokens` for every prompt
    whatever comes, for timing.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        tokens = _decode_batch(
            model, [prompts[i] for i in chosen], decoding, stop, pad, max_new_tokens, force_length
        )
        for i, row in zip(chosen, tokens, strict=True):
            answers[i] = _cut(row, stop, force_length)
    return [answers[i] for i in range(len(prompts))]


def _cut(tokens: list[int], stop: int, force_length: bool) -> Answer:
    if stop in tokens and not force_length:
        return Answer(tokens[: tokens.index(stop) + 1], hit_length_limit=False)
    return Answer(tokens, hit_length_limit=True)


def _decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding | None,
    stop: int,
    pad: int,
    max_new_tokens: int,
    force_length: bool,
) -> list[list[int]]:
    """Generated tokens of each prompt, cut nowhere: a row goes on after its end until all have ended."""
    run = _Run.start(model, prompts, decoding, pad)
    logits = run.prefill(decoding)
    generated = torch.full((len(prompts), max_new_tokens), stop, device=logits.device)
    look_every = LOOK_EVERY.get(logits.device.type, 1)
    alive = torch.arange(len(prompts), device=logits.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=logits.device)
    for step in range(max_new_tokens):
        token = logits.argmax(-1)
        generated[alive, step] = token
        ended |= token == stop
        if step == max_new_tokens - 1:
            break
        if not force_length and step % look_every == 0:
            going = (~ended).nonzero().flatten()
            if not len(going):
                break
            if len(going) <= len(ended) // 2:
                run.keep(going)
                alive, ended, token = alive[going], ended[going], token[going]
        logits = run.forward(run.embed(token[:, None]), read=True)
    return generated.tolist()


class _Run:
    """One batch under way: its cache, its mask and the next position of each row."""

    def __init__(self, model: PreTrainedModel, mask: Tensor, inputs: Tensor):
        self.model = model
        self.embed = model.get_input_embeddings()
        self.cache = DynamicCache(config=model.config)
        self.mask = mask
        self.inputs = inputs
        self.next = torch.zeros_like(mask[:, 0])

    @staticmethod
    def start(
        model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: Decoding | None, pad: int
    ) -> "_Run":
        """Left-pad the prompts with what stands before the latents, or with all that follows, if no loop."""
        tail: list[int] = []
        if decoding is not None:
            tail = list(decoding.before)
            if not decoding.loops:
                tail += [decoding.latent_token] * decoding.latents + list(decoding.after)
        rows = [[*prompt, *tail] for prompt in prompts]
        width = max(map(len, rows))
        inputs = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        return _Run(model, mask, inputs)

    def prefill(self, decoding: Decoding | None) -> Tensor:
        """Read the prompt and think; returns the logits of the first generated token, [B, V]."""
        prompt = self.embed(self.inputs)
        if decoding is None or not decoding.loops:
            return self.forward(prompt, read=True)
        hidden = self.forward(prompt, read=False)
        norm = embedding_norm(self.model) if decoding.latent_input == "scaled" else None
        for _ in range(decoding.latents - 1):
            hidden = self.forward(latent_embeddings(hidden, norm)[:, None], read=False)
        hidden = latent_embeddings(hidden, norm)
        after = torch.tensor([decoding.after] * len(self.mask), dtype=torch.long, device=self.mask.device)
        return self.forward(torch.cat([hidden[:, None], self.embed(after)], dim=1), read=True)

    def forward(self, inputs: Tensor, read: bool) -> Tensor:
        """One cached pass over input embeddings [B, T, d].

        Returns the last position's logits [B, V] if `read`, and its hidden state [B, d] otherwise.
        """
        length = inputs.shape[1]
        if self.cache.get_seq_length() == 0:
            positions = (self.mask.cumsum(1) - 1).clamp(min=0)
            self.next = self.mask.sum(1)
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), length)], dim=1)
            positions = self.next[:, None] + torch.arange(length, device=inputs.device)
            self.next = self.next + length
        hidden = self.model.base_model(
            inputs_embeds=inputs.to(self.embed.weight.dtype),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden) if read else hidden

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.next = self.next[rows]
