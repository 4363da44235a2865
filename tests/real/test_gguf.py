"""A pretrained model with latents as a GGUF file: its tokenizer, and its answers by llama.cpp."""

import pytest

from copra.cli import main
from copra.generation.answering import GenerationOptions, generate
from copra.generation.llama_cpp import GgufModel
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import load_checkpoint
from copra.tasks.task import Row

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

QUESTIONS = (
    "Anna has 3 apples and buys 2 more. How many?",
    "It's 7:30 PM; what is 1234 * 3?\tTell.",
)


@pytest.mark.parametrize("name", ["cot", "coconut"])
def test_a_file_has_the_tokenizer_and_llama_cpp_writes_the_same_tokens(trained, tmp_path, name):
    file = tmp_path / "model.gguf"
    assert main(["gguf", str(trained[name]), str(file), "--type", "f32"]) == 0
    fields = gguf.GGUFReader(file).fields
    # Digits apart from words, or as GPT-2 does: copies of the tokenizer differ in that.
    assert fields["tokenizer.ggml.pre"].contents() in ("smollm", "gpt-2")
    checkpoint = load_checkpoint(trained[name])
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == checkpoint.manifest.shape.vocabulary
    assert tokens[checkpoint.tokenizer.eos_token_id] == checkpoint.tokenizer.eos_token
    pytest.importorskip("llama_cpp", reason="needs the package llama-cpp-python")
    model = GgufModel(file, context=256, threads=1)
    rows = [Row(question, (), "") for question in QUESTIONS]
    asked = prompts_of(checkpoint.tokenizer, rows, checkpoint.decoding)
    answers = generate(checkpoint, asked, checkpoint.decoding, GenerationOptions(12, 2))
    for question, prompt, answer in zip(QUESTIONS, asked.prompts, answers, strict=True):
        written = [token for token in answer.tokens if token != checkpoint.tokenizer.eos_token_id]
        assert model.generate(prompt, 12) == written
        assert model.answer(question, 12) == checkpoint.tokenizer.decode(written)
