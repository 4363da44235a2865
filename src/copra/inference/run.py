"""One batch that is being answered: its cache, its mask, and the ways to think before the first token."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from copra.models.hooks import before_blocks, put
from copra.models.logits import read_logits
from copra.reasoning.forward import latent_feed
from copra.reasoning.layout import Decoding


def read_prefix(model: PreTrainedModel, prefix: Sequence[int]) -> DynamicCache:
    """The cache of one row after the tokens that all prompts begin with."""
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([list(prefix)], device=model.device)
    model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache


class Run:
    """Prompts side by side, padded on the left, with what stands before the latents (or all that follows,
    where latents need no loop). `shared` is the cache of a prefix of all of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding | None,
        pad: int,
        parts: nn.ModuleDict | None = None,
        shared: DynamicCache | None = None,
    ):
        self.model = model
        self.embed = model.get_input_embeddings()
        self.decoding = decoding
        self.parts = nn.ModuleDict() if parts is None else parts
        tail: list[int] = []
        if decoding is not None:
            tail = list(decoding.before)
            if not decoding.loops:
                tail += [decoding.latent_token] * decoding.latents + list(decoding.after)
        rows = [[*prompt, *tail] for prompt in prompts]
        width = max(map(len, rows))
        self.prompt = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        self.prompt_mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device
        )
        self.cache = DynamicCache(config=model.config)
        if shared is not None:
            self.cache = copy.deepcopy(shared)
            self.cache.batch_repeat_interleave(len(rows))
        if decoding is not None and decoding.jacobi:
            # A layer with a window forgets what lies before it, and each iteration takes positions back.
            self.cache.activate_past_recording()
        known = self.cache.get_seq_length()
        self.mask = self.prompt_mask.new_ones(len(rows), known)
        self.next = torch.full_like(self.prompt_mask[:, 0], known)

    def prefill(self) -> Tensor:
        """Read the prompt and think; returns the logits of the first generated token, [B, V]."""
        decoding = self.decoding
        if decoding is not None and decoding.loops:
            return self.conclude(self.think())
        prompt = self.embed(self.prompt)
        if decoding is not None and decoding.emulated:
            return self._prefill_emulated(prompt)
        return self._logits(self._body(prompt, self.prompt_mask))

    def think(self) -> Tensor:
        """Read the prompt and run through the latents; returns the hidden states that they are made from,
        [B, n, d], in order. Only for a decoding that loops."""
        prompt = self.embed(self.prompt)
        if self.decoding.jacobi:
            return self._iterate(prompt)
        states = [self._body(prompt, self.prompt_mask)[:, -1:]]
        for _ in range(self.decoding.latents - 1):
            states.append(self._body(self._feed(states[-1])))
        return torch.cat(states, dim=1)

    def conclude(self, states: Tensor) -> Tensor:
        """Feed what is not fed yet of the latents made from `states` [B, n, d], and what stands after them;
        returns the logits of the first generated token, [B, V]."""
        latents = self._feed(states if self.decoding.jacobi else states[:, -1:])
        after = torch.tensor(
            [self.decoding.after] * len(self.mask), dtype=torch.long, device=self.mask.device
        )
        return self._logits(self._body(torch.cat([latents, self.embed(after)], dim=1)))

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one generated token of each row, [B]; returns the logits of the next one, [B, V]."""
        return self._logits(self._body(self.embed(tokens[:, None])))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.next = self.next[rows]

    def _iterate(self, prompt: Tensor) -> Tensor:
        """The states [B, n, d] before the last pass of the Jacobi iterations (2506.18582, section 3.2)."""
        n = self.decoding.latents
        tokens = torch.full((len(prompt), n), self.decoding.latent_token, device=prompt.device)
        read = torch.cat([self.prompt_mask, torch.ones_like(tokens)], dim=1)
        hidden = self._body(torch.cat([prompt, self.embed(tokens)], dim=1), read)
        before, latents = hidden[:, -n - 1 : -n], hidden[:, -n:]
        for iteration in range(self.decoding.jacobi):
            self._forget(n)
            states = torch.cat([before, latents[:, :-1]], dim=1)
            if iteration < self.decoding.jacobi - 1:
                latents = self._body(self._feed(states))
        return states

    @cached_property
    def _feed(self) -> Callable[[Tensor], Tensor]:
        """How hidden states become latents' input embeddings; made once, as it may read all embeddings."""
        projection = self.parts["projection"] if "projection" in self.parts else None  # noqa: SIM401
        return latent_feed(self.model, self.decoding.latent_input, projection)

    def _prefill_emulated(self, prompt: Tensor) -> Tensor:
        """The emulator reads the prompt, then the student does with the emulator's states put in."""
        columns = torch.full_like(self.next, prompt.shape[1] - 1)
        positions = (self.prompt_mask.cumsum(1) - 1).clamp(min=0)
        states = self.parts["emulator"](self.prompt, self.prompt_mask, positions, columns)
        states = self.parts["mind_reader"](states)
        with before_blocks(self.model, lambda index, hidden: put(hidden, columns, states[index])):
            return self._logits(self._body(prompt, self.prompt_mask))

    def _body(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One cached pass over input embeddings [B, T, d]; `mask` [B, T] is 0 on padding (None: none).

        Returns the final-norm hidden states [B, T, d].
        """
        if mask is None:
            mask = self.mask.new_ones(inputs.shape[:2])
        positions = (self.next[:, None] + mask.cumsum(1) - 1).clamp(min=0)
        self.next = self.next + mask.sum(1)
        self.mask = torch.cat([self.mask, mask], dim=1)
        return self.model.base_model(
            inputs_embeds=inputs.to(self.embed.weight.dtype),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _forget(self, n: int) -> None:
        """Take back the last n positions."""
        self.cache.crop(-n)
        self.mask = self.mask[:, :-n]
        self.next = self.next - n

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, V] at the last of the positions [B, T, d]."""
        return read_logits(self.model, hidden[:, -1])
