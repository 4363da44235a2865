"""Decode one batch: its cache, its mask, its latents, and one token at a time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, PreTrainedModel

from copra.data.sequences import GenerationSpec
from copra.generation.cache import growing_cache, start_with, widened
from copra.generation.compiled import Compiled
from copra.models.attention import shortest_window
from copra.models.hooks import before_blocks, scatter_positions
from copra.models.logits import read_logits
from copra.models.networks import joined, latent_feed
from copra.models.rollout import Span, rollout, spans


def read_prefix(model: PreTrainedModel, prefix: Sequence[int]) -> DynamicCache:
    """Return the cache of one row after reading the common prefix of all prompts."""
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([list(prefix)], device=model.device)
    model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache


class DecodingSession:
    """The decoding state of a batch of prompts, padded on the left.

    `prefix_ids`, the latents' token and `suffix_ids` are appended to the prompts. `shared` is the cache of a
    common prefix of the prompts. With `compiled`, passes over one position are compiled; its batch size is
    the number of prompts.

    `stop` is the number of columns read, `padding` [B] the number of padding columns, which come first (after
    the prefix), and `mask` [B, N] is false there; its columns from `stop` on are unused. `latent_states`
    [B, n, d] are the hidden states that the recurrent latents were last made from, `latent_inputs` [B, n, d]
    the embeddings last fed as these latents (both None before `prefill`, and without recurrent latents).

    `given_latents` [B, n, d] are embeddings that are fed at the latent positions instead: no latent waits for
    another then, and one pass reads the prompt with them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        decoding: GenerationSpec | None,
        pad: int,
        extra_modules: nn.ModuleDict | None = None,
        shared: Cache | None = None,
        compiled: Compiled | None = None,
        given_latents: Tensor | None = None,
    ):
        self.model = model
        self.embed = model.get_input_embeddings()
        self.decoding = decoding
        self.extra_modules = nn.ModuleDict() if extra_modules is None else extra_modules
        self.compiled = compiled
        self.given_latents = given_latents
        tail: list[int] = []
        if decoding is not None:
            latents = [decoding.latent_token] * decoding.latents
            tail = [*decoding.prefix_ids, *latents, *decoding.suffix_ids]
        rows = [torch.tensor([*prompt, *tail], dtype=torch.long) for prompt in prompts]
        prompt = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        width = prompt.shape[1]
        # On the host, since reading it from the device would synchronize.
        self.paddings = [width - len(row) for row in rows]
        padding = torch.tensor(self.paddings)
        mask = torch.arange(width) >= padding[:, None]
        self.cache = growing_cache(model) if compiled is None else compiled.begin()
        if given_latents is None and compiled is None and decoding is not None and decoding.jacobi_iterations:
            # A sliding-window layer drops positions before its window; each iteration removes positions.
            self.cache.activate_past_recording()
        self.latent_states: Tensor | None = None
        self.latent_inputs: Tensor | None = None
        self.stop = 0
        if shared is not None:
            self.stop = shared.get_seq_length()
            start_with(self.cache, shared, len(rows))
        mask = torch.cat([mask.new_ones(len(rows), self.stop), mask], dim=1)
        length = mask.shape[1] if compiled is None else compiled.length
        # Later copies to the device would wait for the work in its queue.
        self.prompt, self.padding, self.mask = (
            each.to(model.device, non_blocking=True) for each in (prompt, padding, widened(mask, length))
        )

    def prefill(self) -> Tensor:
        """Read the prompt, run the latents, and return logits [B, V] of the first generated token."""
        embeddings = self.embed(self.prompt)
        if self.given_latents is not None:
            embeddings = self._with_given_latents(embeddings, self.given_latents)
        elif self.decoding is not None and self.decoding.has_recurrent_latents:
            return self._prefill_with_latents(embeddings, self.decoding)
        with self._emulation():
            return self._logits(self._read(embeddings))

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one generated token per row, [B], and return the logits [B, V] of the next one."""
        return self._logits(self._read(self.embed(tokens[:, None])))

    def select_rows(self, rows: Tensor) -> None:
        """Keep only these rows in the batch. Not for compiled models."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.padding = self.padding[rows]
        self.paddings = [self.paddings[row] for row in rows.tolist()]

    def _with_given_latents(self, embeddings: Tensor, latents: Tensor) -> Tensor:
        """Return the prompt's embeddings [B, T, d] with others [B, n, d] at the latent positions."""
        assert self.decoding is not None
        stop = embeddings.shape[1] - len(self.decoding.suffix_ids)
        given = latents.to(embeddings, non_blocking=True)
        return torch.cat([embeddings[:, : stop - given.shape[1]], given, embeddings[:, stop:]], dim=1)

    def _prefill_with_latents(self, embeddings: Tensor, decoding: GenerationSpec) -> Tensor:
        """Read the prompt's embeddings [B, T, d] with recurrent latents and return logits [B, V]."""
        first, n = self.stop, decoding.latents
        stop, iterations = first + embeddings.shape[1], decoding.jacobi_iterations
        made_from: list[Tensor] = []
        fed: list[Tensor] = []

        def read(span: Span, before: list[Tensor]) -> Tensor:
            inputs = embeddings[:, span.start - first : span.stop - first]
            if span.latents:
                made_from.append(joined(before))
                fed.append(self._feed(made_from[-1]))
                rest = inputs[:, span.latents :]
                inputs = torch.cat([fed[-1], rest], dim=1) if rest.shape[1] else fed[-1]
            self._remove_last(self.stop - span.start)
            return self._read(inputs)

        passes = spans(first, stop - len(decoding.suffix_ids) - n, n, stop, iterations)
        _, hidden = rollout(passes, read)[-1]
        last = slice(-1, None) if iterations else slice(None)
        self.latent_states, self.latent_inputs = joined(made_from[last]), joined(fed[last])
        return self._logits(hidden)

    @cached_property
    def _feed(self) -> Callable[[Tensor], Tensor]:
        """The function from hidden states to latent inputs, cached as creating it may read all embeddings."""
        assert self.decoding is not None
        projection = self.extra_modules["projection"] if "projection" in self.extra_modules else None  # noqa: SIM401
        return latent_feed(self.model, self.decoding.latent_input, projection)

    @contextlib.contextmanager
    def _emulation(self) -> Iterator[None]:
        """Within this context the model reads the prompt with the states of its emulator, if it has one."""
        if self.decoding is None or not self.decoding.emulated:
            yield
            return
        width = self.prompt.shape[1]
        columns = torch.full_like(self.padding, width - 1)
        mask = self.mask[:, self.stop : self.stop + width].long()
        states = self.extra_modules["emulator"](self.prompt, mask, self._positions(0, width), columns)
        states = self.extra_modules["mind_reader"](states)
        with before_blocks(
            self.model, lambda index, hidden: scatter_positions(hidden, columns, states[index])
        ):
            yield

    def _read(self, inputs: Tensor) -> Tensor:
        """Return final-norm hidden states [B, T, d] of one cached pass over the next columns' embeddings."""
        start, self.stop = self.stop, self.stop + inputs.shape[1]
        inputs = inputs.to(self.embed.get_parameter("weight").dtype)
        positions = self._positions(start, self.stop)
        if self.compiled is not None:
            return self.compiled.body(inputs, self.mask, positions, self.stop)
        if self.stop > self.mask.shape[1]:
            self.mask = widened(self.mask, self.stop)
        return self.model.base_model(
            inputs_embeds=inputs,
            attention_mask=self._mask(start),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _positions(self, start: int, stop: int) -> Tensor:
        """Return the positions [B, T] of columns; arbitrary on padding."""
        columns = torch.arange(start, stop, device=self.padding.device)
        return (columns - self.padding[:, None]).clamp(min=0)

    def _mask(self, start: int) -> Tensor | None:
        """Return the attention mask of a pass over the columns from `start` on, or None without padding.

        It is [B, 1, 1, stop] for a single column with SDPA within the window, otherwise [B, stop]. For the
        latter transformers synchronizes with the device for each token to check whether anything is masked.
        """
        if not any(self.paddings):
            return None
        mask = self.mask[:, : self.stop]
        ready = self.stop - start == 1 and self.model.config._attn_implementation == "sdpa"
        return mask[:, None, None] if ready and self.stop <= self._window else mask

    @cached_property
    def _window(self) -> float:
        return shortest_window(self.model)

    def _remove_last(self, n: int) -> None:
        """Remove the last n positions from the cache."""
        if n:
            self.cache.crop(-n)
            self.stop -= n

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits [B, V] at the last position of hidden states [B, T, d]."""
        return read_logits(self.model, hidden[:, -1])
