"""A pretrained model with latents as a GGUF file: its tokenizer, and its answers by llama.cpp."""

import pytest

from copra.cli import main
from copra.models.checkpoint import load_checkpoint
from helpers.exported import assert_same_tokens
from helpers.llama_cpp import gguf_model

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
    assert_same_tokens(checkpoint, gguf_model(file), QUESTIONS, 12)
