"""Answers of a GGUF file by llama.cpp, beside those of the checkpoint that it was written of."""

from pathlib import Path

import pytest

from copra.generation.answering import GenerationOptions, generate
from copra.generation.llama_cpp import GgufModel
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import Checkpoint
from copra.tasks.task import Row


def assert_same_tokens(checkpoint: Checkpoint, file: Path, questions: tuple[str, ...], longest: int) -> None:
    """Both write the same tokens, from a question's tokens and from its text; skipped without the library."""
    pytest.importorskip("llama_cpp", reason="needs the package llama-cpp-python")
    model = GgufModel(file, context=256, threads=1)
    rows = [Row(question, (), "") for question in questions]
    asked = prompts_of(checkpoint.tokenizer, rows, checkpoint.decoding)
    answers = generate(checkpoint, asked, checkpoint.decoding, GenerationOptions(longest, 2))
    for question, prompt, answer in zip(questions, asked.prompts, answers, strict=True):
        tokens = [token for token in answer.tokens if token != checkpoint.tokenizer.eos_token_id]
        assert model.generate(prompt, longest) == tokens
        assert model.answer(question, longest) == checkpoint.tokenizer.decode(tokens)
        # Once more: nothing is left of the last answer.
        assert model.generate(prompt, longest) == tokens
