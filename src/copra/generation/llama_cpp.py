"""Answers of GGUF files by llama.cpp's own library: latents are states after the final norm, fed back.

It needs the package llama-cpp-python. The files are those of `copra gguf`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from copra.generation.exported import ExportedModel, State
from copra.models.gguf_file import DECODING
from copra.utils.errors import CopraError


class GgufModel(ExportedModel):
    """A model in a GGUF file, which answers greedily as its checkpoint does."""

    def __init__(self, path: Path, context: int = 1024, threads: int | None = None):
        """Load a file for sequences of at most `context` tokens.

        Raises:
            CopraError: the file is not one of copra's, or llama-cpp-python is missing.
        """
        try:
            import llama_cpp
        except ImportError:
            raise CopraError(
                "running GGUF files needs llama.cpp. Run pip install llama-cpp-python."
            ) from None
        self._api = llama_cpp
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=threads,
            n_threads_batch=threads,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE,
            # Half precision, its default, changes answers.
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        if DECODING not in self._llama.metadata:
            raise CopraError(f"{path}: is no file of copra's. Write one with copra gguf.")
        self.decoding: dict[str, Any] = json.loads(self._llama.metadata[DECODING])
        self.end_ids = {self._llama.token_eos()}
        self._position = 0

    def answer(self, question: str, max_new_tokens: int = 256) -> str:
        """Return the text that the model writes after a question, without special tokens."""
        prompt = self._llama.tokenize(f"{question}\n".encode(), add_bos=self._adds_start, special=False)
        written = self.generate(prompt, max_new_tokens)
        return bytes(self._llama.detokenize(written)).decode(errors="replace")

    @property
    def _context(self) -> Any:
        return self._llama.ctx

    @property
    def _adds_start(self) -> bool:
        return bool(self._llama.metadata.get("tokenizer.ggml.add_bos_token") == "true")

    def _begin(self) -> None:
        self._llama.reset()
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._position = 0

    def _read(self, tokens: Sequence[int]) -> None:
        self._read_tokens(tokens, states=False)

    def _read_to_state(self, tokens: Sequence[int]) -> State:
        # llama.cpp gives the states of all positions of a batch, or of none.
        *before, last = tokens
        if before:
            self._read(before)
        self._read_tokens([last], states=True)
        return self._state()

    def _read_latent(self, latent: State) -> State:
        batch = self._api.llama_batch_init(1, len(latent), 1)
        numpy.ctypeslib.as_array(batch.embd, shape=(len(latent),))[:] = latent
        self._run(batch, 1, True)
        return self._state()

    def _state(self) -> State:
        found = self._api.llama_get_embeddings_ith(self._context, -1)
        return numpy.ctypeslib.as_array(found, shape=(self._llama.n_embd(),)).copy()

    def _logits(self) -> State:
        found = self._api.llama_get_logits_ith(self._context, -1)
        return numpy.ctypeslib.as_array(found, shape=(self._llama.n_vocab(),))

    def _read_tokens(self, tokens: Sequence[int], *, states: bool) -> None:
        batch = self._api.llama_batch_init(len(tokens), 0, 1)
        for place, token in enumerate(tokens):
            batch.token[place] = token
        self._run(batch, len(tokens), states)

    def _run(self, batch: Any, number: int, states: bool) -> None:
        """Read a batch after what was read; its last position has logits, and with `states` its state."""
        self._api.llama_set_embeddings(self._context, states)
        batch.n_tokens = number
        for place in range(number):
            batch.pos[place] = self._position + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place == number - 1
        status = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if status:
            raise CopraError(
                f"llama.cpp cannot read {number} positions after {self._position} (status {status})."
            )
        self._position += number
