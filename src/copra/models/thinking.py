"""Answer with latents where copra is not installed.

This file and those that it imports (`per_layer.py` imports it) are copied into every checkpoint that answers
otherwise than by plain generation. So they import only torch, transformers, safetensors and each other:
`AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).generate(ids)` answers as copra does.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import cached_file

from .hooks import before_blocks, scatter_positions
from .networks import NETWORKS, joined, latent_feed
from .rollout import Span, rollout, spans
from .visits import unlooped, visit_layers

FILE = "extra_modules.safetensors"
Cut = Callable[[Tensor], Tensor]


class Thinking:
    """Adds to a causal language model the way that its config's `thinking` answers (None: as ever).

    `thinking` has `prefix_ids`, `latents` times `latent_token` and `suffix_ids`, which follow each prompt;
    `feed`, how hidden states become latents ("raw", "scaled" or "projected"; None: the latents are embeddings
    of their token); `iterations`, the number of Jacobi iterations (0: one latent after another); `networks`,
    the names of networks in the file `FILE`; and `visits`, the layers in the order in which they are run
    (None: each once), with `by_layer`, the settings of the config with a value per layer.
    """

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **settings: Any
    ) -> Any:
        """Generate as `transformers.GenerationMixin.generate` does, after the latents.

        What follows the prompts before the answer is left out of the returned sequences, and of those that
        stopping criteria, logits processors and a streamer see. `max_length` counts without it.

        Raises:
            ValueError: no tokens are given, prompts are padded on the right, or they are read in chunks.
        """
        thinking = getattr(self.config, "thinking", None)
        if thinking is None:
            return super().generate(inputs, generation_config, **settings)
        ids = settings.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            raise ValueError("latents follow a prompt of tokens: give input_ids")
        mask = settings.pop("attention_mask", None)
        mask = _mask_of(ids, self.generation_config.pad_token_id) if mask is None else mask
        if not bool(mask[:, -1].all()):
            raise ValueError("latents follow the prompts: pad them on the left (padding_side='left')")
        latents = [thinking["latent_token"]] * thinking["latents"]
        tail = ids.new_tensor([*thinking["prefix_ids"], *latents, *thinking["suffix_ids"]])
        cut = functools.partial(_without, start=ids.shape[1], count=len(tail))
        asked = torch.cat([ids, tail.expand(len(ids), -1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(ids), len(tail))], dim=1)
        settings = _lengthened(settings, cut, ids, len(tail))
        if generation_config is not None:
            lengths = {"max_length": generation_config.max_length, "min_length": generation_config.min_length}
            generation_config = copy.deepcopy(generation_config)
            generation_config.update(**_longer(lengths, len(tail)))
        with self._thinking_in_first_pass(thinking, mask):
            found = super().generate(asked, generation_config, attention_mask=mask, **settings)
        if isinstance(found, Tensor):
            return cut(found)
        found.sequences = cut(found.sequences)
        return found

    def loop_as_trained(self) -> None:
        """Loop the layers of a new model if `thinking` has visits: all its passes, not only answers."""
        thinking = getattr(self.config, "thinking", None)
        if thinking is not None and thinking["visits"] is not None:
            visit_layers(self, thinking["visits"], thinking["by_layer"])

    def save_pretrained(self, save_directory: Any, *arguments: Any, **settings: Any) -> None:
        """Save as transformers does, with the networks that answering needs."""
        with unlooped(self):
            super().save_pretrained(save_directory, *arguments, **settings)
        if (getattr(self.config, "thinking", None) or {}).get("networks"):
            save_model(self._thinking_networks(), str(save_directory) + "/" + FILE)

    def _thinking_networks(self) -> nn.ModuleDict:
        """Return the networks that answering needs, by name, read once."""
        found = self.__dict__.get("_networks")
        if found is None:
            names = self.config.thinking["networks"]
            found = nn.ModuleDict({name: NETWORKS[name](self) for name in names})
            if names:
                place = self.config._name_or_path
                missing, _ = load_model(found, cached_file(place, FILE), strict=False)
                if missing:
                    raise ValueError(f"{FILE} of {place} lacks {', '.join(sorted(missing))}")
            # Not a submodule: the weights of the language model stay those of its file.
            self.__dict__["_networks"] = found = found.to(self.device, self.dtype).eval()
        return found

    @contextlib.contextmanager
    def _thinking_in_first_pass(self, thinking: dict[str, Any], mask: Tensor) -> Iterator[None]:
        """Make the pass that reads the prompts run the latents, within this context."""
        forward = self.forward

        @functools.wraps(forward)
        def call(input_ids: Tensor | None = None, *, past_key_values: Any = None, **settings: Any) -> Any:
            if past_key_values is None or past_key_values.get_seq_length():
                return forward(input_ids=input_ids, past_key_values=past_key_values, **settings)
            if input_ids is None or input_ids.shape[1] != mask.shape[1]:
                raise ValueError("latents follow whole prompts of tokens: leave prefill_chunk_size out")
            seen = mask.repeat_interleave(len(input_ids) // len(mask), dim=0)
            first = _FirstPass(self, forward, thinking, input_ids, seen, past_key_values, settings)
            return first.run()

        self.forward = call
        try:
            yield
        finally:
            del self.forward


class _FirstPass:
    """The pass over prompts [B, T] that end with latents and their markers, in as many parts as it takes."""

    def __init__(
        self,
        model: Any,
        forward: Callable[..., Any],
        thinking: dict[str, Any],
        ids: Tensor,
        mask: Tensor,
        cache: Any,
        settings: dict[str, Any],
    ):
        self.model, self.forward, self.thinking, self.ids, self.mask = model, forward, thinking, ids, mask
        self.cache = cache
        # Masks and positions of a static cache are those of one pass.
        self.settings = {
            key: value
            for key, value in settings.items()
            if key not in ("attention_mask", "position_ids", "inputs_embeds", "cache_position", "use_cache")
        }
        self.positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.embeddings = model.get_input_embeddings()(ids)
        self.read_columns = 0
        self.last: Span | None = None
        self.outputs: Any = None

    def run(self) -> Any:
        """Return the outputs of the model for its last part, as `forward` does."""
        thinking, width = self.thinking, self.ids.shape[1]
        latents = thinking["latents"] if thinking["feed"] else 0
        first = width - len(thinking["suffix_ids"]) - latents
        if thinking["iterations"]:
            # A sliding-window layer drops positions before its window; each iteration removes positions.
            self.cache.activate_past_recording()
        passes = list(spans(0, first, latents, width, thinking["iterations"]))
        self.last = passes[-1]
        with self._emulation():
            rollout(passes, self._read)
        return self.outputs

    @functools.cached_property
    def _feed(self) -> Callable[[Tensor], Tensor]:
        networks = self.model._thinking_networks()
        projection = networks["projection"] if "projection" in self.thinking["networks"] else None
        return latent_feed(self.model, self.thinking["feed"], projection)

    def _read(self, span: Span, before: list[Tensor]) -> Tensor:
        """Return final-norm hidden states [B, T, d] of a span; of the last one only the outputs are kept."""
        inputs = self.embeddings[:, span.start : span.stop]
        if span.latents:
            made = self._feed(joined(before)).to(inputs.dtype)
            inputs = torch.cat([made, inputs[:, span.latents :]], dim=1)
        if self.read_columns > span.start:
            self.cache.crop(span.start - self.read_columns)
        self.read_columns = span.stop
        arguments = {
            "inputs_embeds": inputs,
            "attention_mask": self.mask[:, : span.stop],
            "position_ids": self.positions[:, span.start : span.stop],
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if span is not self.last:
            return self.model.base_model(**arguments).last_hidden_state
        self.outputs = self.forward(**arguments, **self.settings)
        return inputs

    @contextlib.contextmanager
    def _emulation(self) -> Iterator[None]:
        """Within this context prompts are read with the states of the emulator, if the model has one."""
        if "emulator" not in self.thinking["networks"]:
            yield
            return
        networks = self.model._thinking_networks()
        columns = torch.full_like(self.ids[:, 0], self.ids.shape[1] - 1)
        states = networks["emulator"](self.ids, self.mask, self.positions, columns)
        states = networks["mind_reader"](states)
        with before_blocks(self.model, lambda index, x: scatter_positions(x, columns, states[index])):
            yield


def _mask_of(ids: Tensor, pad: int | None) -> Tensor:
    """Return the attention mask [B, T] of prompts that are padded with a token of its own."""
    return torch.ones_like(ids) if pad is None else _after_padding(ids != pad)


def _after_padding(is_token: Tensor) -> Tensor:
    """Return 1 from the first token on, since the padding token may also end a text."""
    return (is_token.cumsum(1) > 0).long()


def _without(ids: Tensor, start: int, count: int) -> Tensor:
    """Return sequences [B, T] without `count` columns from `start` on."""
    return torch.cat([ids[:, :start], ids[:, start + count :]], dim=1)


def _longer(lengths: dict[str, int | None], more: int) -> dict[str, int]:
    """Return the lengths that are given, each with so many tokens more."""
    return {key: length + more for key, length in lengths.items() if length}


def _lengthened(settings: dict[str, Any], cut: Cut, ids: Tensor, more: int) -> dict[str, Any]:
    """Return the settings of a generation after prompts with `more` tokens, which nobody else sees."""
    lengths = {key: settings.get(key) for key in ("max_length", "min_length")}
    changed = {**settings, **_longer(lengths, more), "use_cache": True}
    for key in ("stopping_criteria", "logits_processor"):
        if settings.get(key):
            changed[key] = type(settings[key])(_unseeing(settings[key], cut))
    if settings.get("streamer") is not None:
        changed["streamer"] = _Streamer(settings["streamer"], ids)
    return changed


def _unseeing(calls: Iterable[Callable[..., Any]], cut: Cut) -> Sequence[Callable[..., Any]]:
    """Return functions of sequences that are called without what stands between prompt and answer."""
    return [lambda ids, *rest, call=call, **settings: call(cut(ids), *rest, **settings) for call in calls]


class _Streamer:
    """A streamer that is given the prompts as they were asked."""

    def __init__(self, streamer: Any, ids: Tensor):
        self.streamer, self.prompts = streamer, [ids.cpu()]

    def put(self, value: Tensor) -> None:
        self.streamer.put(self.prompts.pop() if self.prompts else value)

    def end(self) -> None:
        self.streamer.end()
