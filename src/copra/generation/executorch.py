"""Answers of programs in ExecuTorch's own runtime: latents are states after the final norm, fed back.

It needs the package executorch. The folders are those of `copra executorch`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from copra.generation.exported import ExportedModel, State
from copra.generation.prompts import prompts_of
from copra.models.executorch_file import DECODING, PROGRAM, need_executorch
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import read_json


class ExecutorchModel(ExportedModel):
    """A model in a folder of `copra executorch`, which answers greedily as its checkpoint does."""

    def __init__(self, folder: Path, threads: int | None = None):
        """Load the program and the tokenizer of a folder; `threads` None are as many as ExecuTorch takes.

        Raises:
            CopraError: the folder is not one of copra's, or executorch is missing.
        """
        need_executorch()
        from executorch.runtime import Runtime

        folder = Path(folder)
        if not (folder / DECODING).is_file():
            raise CopraError(f"{folder}: is no folder of copra's. Write one with copra executorch.")
        self.decoding = read_json(folder / DECODING)
        self.end_ids = self.decoding["end_ids"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if threads is not None:
            _set_threads(threads)
        self._program = Runtime.get().load_program(folder / PROGRAM)
        self._embed = self._program.load_method("embed")
        self._step = self._program.load_method("step")
        self._position = 0

    def answer(self, question: str, max_new_tokens: int = 256) -> str:
        """Return the text that the model writes after a question, without special tokens."""
        (prompt,) = prompts_of(self.tokenizer, [Row(question, (), "")], None).prompts
        return str(self.tokenizer.decode(self.generate(prompt, max_new_tokens), skip_special_tokens=True))

    def generate(self, prompt: Sequence[int], max_new_tokens: int = 256) -> list[int]:
        """Return the tokens that follow a prompt, up to the end token or as many as the cache has room for.

        Raises:
            CopraError: the prompt leaves no room for an answer.
        """
        own = (*self.decoding["prefix_ids"], *self.decoding["suffix_ids"])
        asked, length = len(prompt) + len(own) + self.decoding["latents"], self.decoding["max_length"]
        if asked > length:
            raise CopraError(
                f"the question takes {asked} positions, and the program has {length}. Write it again with a "
                "larger --max-length."
            )
        # The last token is written, but not read.
        return super().generate(prompt, min(max_new_tokens, length - asked + 1))

    def _begin(self) -> None:
        # What the cache holds is masked, as everything after the last position is, until it is overwritten.
        self._position = 0

    def _read(self, tokens: Sequence[int]) -> None:
        self._run(self._embed.execute([torch.tensor(tokens)])[0])

    def _read_to_state(self, tokens: Sequence[int]) -> State:
        self._read(tokens)
        return self._state

    def _read_latent(self, latent: State) -> State:
        self._run(torch.from_numpy(latent)[None, None])
        return self._state

    def _logits(self) -> State:
        return self._last_logits

    def _run(self, embeddings: torch.Tensor) -> None:
        """Read embeddings [1, T, d] after what was read."""
        stop = self._position + embeddings.shape[1]
        state, logits = self._step.execute([embeddings, torch.arange(self._position, stop)])
        # The next run overwrites the program's outputs.
        self._state, self._last_logits = (each[0].numpy().copy() for each in (state, logits))
        self._position = stop


def _set_threads(number: int) -> None:
    """Set the number of threads of all programs in this process; before any runs, as ExecuTorch asks."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(number)
