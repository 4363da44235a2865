"""The loop by which a model outside of PyTorch answers greedily, with its latents, one question at a time."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

State = NDArray[numpy.float32]


class ExportedModel(ABC):
    """A model in another program's format, which answers as its checkpoint does.

    `decoding` is as in `copra.models.exported.decoding_of`; `end_ids` are the tokens that end an answer.
    """

    decoding: dict[str, Any]
    end_ids: Collection[int]

    def generate(self, prompt: Sequence[int], max_new_tokens: int = 256) -> list[int]:
        """Return the tokens that follow a prompt, up to the end token, which is left out."""
        self._begin()
        decoding = self.decoding
        before = [*prompt, *decoding["prefix_ids"]]
        if decoding["feed"]:
            state = self._read_to_state(before)
            for _ in range(decoding["latents"]):
                state = self._read_latent(self._latent(state))
            after = decoding["suffix_ids"]
        else:
            after = [*before, *[decoding["latent_token"]] * decoding["latents"], *decoding["suffix_ids"]]
        if after:
            self._read(after)
        written: list[int] = []
        while len(written) < max_new_tokens:
            token = int(numpy.argmax(self._logits()))
            if token in self.end_ids:
                break
            written.append(token)
            if len(written) < max_new_tokens:
                self._read([token])
        return written

    def _latent(self, state: State) -> State:
        """Return the input embedding [d] of the latent after a position's final-norm hidden state [d]."""
        if self.decoding["feed"] == "scaled":
            return state * numpy.float32(self.decoding["norm"] / numpy.linalg.norm(state))
        return state

    @abstractmethod
    def _begin(self) -> None:
        """Forget all positions that were read."""

    @abstractmethod
    def _read(self, tokens: Sequence[int]) -> None:
        """Read tokens, at least one, after the positions that were read."""

    @abstractmethod
    def _read_to_state(self, tokens: Sequence[int]) -> State:
        """Read tokens, at least one, and return the last position's hidden state [d] after the final norm."""

    @abstractmethod
    def _read_latent(self, latent: State) -> State:
        """Read an input embedding [d] and return its position's hidden state [d] after the final norm."""

    @abstractmethod
    def _logits(self) -> State:
        """Return the logits [V] of the last position that was read."""
