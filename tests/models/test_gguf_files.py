"""Checkpoints as GGUF files: read back by transformers and by the package gguf, and run by llama.cpp."""

import json
from functools import partial

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from copra.cli import main
from copra.models.gguf_file import DECODING, neighbours, rope_factors, write_gguf
from copra.utils.errors import CopraError
from helpers.exported import (
    FEWER,
    QUESTIONS,
    UNEQUAL,
    assert_same_tokens,
    latents,
    looped,
    make_checkpoint,
    plain,
)
from helpers.llama_cpp import gguf_model

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture
def make(rows, tmp_path):
    """Makes a checkpoint with large random weights, of a decoding and with a cut."""
    return partial(make_checkpoint, tmp_path / "model", rows)


@pytest.mark.parametrize("cut", [None, FEWER])
def test_layers_that_are_alike_load_in_transformers_with_the_same_logits(make, tmp_path, cut):
    checkpoint = make(plain, cut=cut)
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for question in QUESTIONS:
        ids = checkpoint.tokenizer(question, return_tensors="pt")["input_ids"]
        assert tokenizer(question)["input_ids"] == ids[0].tolist()
        with torch.no_grad():
            expected, logits = (model(ids).logits for model in (checkpoint.model, found))
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 1


def test_unequal_layers_have_their_sizes_and_weights(make, tmp_path):
    checkpoint = make(plain, cut=UNEQUAL)
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "deci"
    assert fields["deci.attention.head_count"] == [4, 2, 4]
    assert fields["deci.attention.head_count_kv"] == [2, 1, 2]
    assert fields["deci.feed_forward_length"] == [96, 96, 32]
    assert fields["deci.attention.key_length"] == fields["deci.rope.dimension_count"] == 16
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    state = checkpoint.model.state_dict()
    numpy.testing.assert_array_equal(
        tensors["blk.2.ffn_down.weight"], state["model.layers.2.mlp.down_proj.weight"]
    )
    assert tensors["blk.1.attn_k.weight"].shape == (16, 64)
    # Channels 0 and 8 of a head, which are rotated together, become neighbours.
    query = state["model.layers.1.self_attn.q_proj.weight"]
    numpy.testing.assert_array_equal(tensors["blk.1.attn_q.weight"][:4], query[[0, 8, 1, 9]])
    assert len(tensors) == 3 * 9 + 2  # the embedding is the LM head


def test_neighbours_come_from_the_halves_of_each_head():
    weight = torch.arange(8)[:, None]
    assert neighbours(weight, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert neighbours(torch.arange(8), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(("kind", "error"), [("f16", 2e-3), ("q8_0", 2e-2), ("q4_0", 0.3)])
def test_weights_of_fewer_bits_are_near(make, tmp_path, kind, error):
    checkpoint = make(plain)
    write_gguf(checkpoint, tmp_path / "model.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    (tensor,) = [each for each in reader.tensors if each.name == "blk.0.ffn_up.weight"]
    assert tensor.tensor_type.name == kind.upper()
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = checkpoint.model.state_dict()["model.layers.0.mlp.up_proj.weight"].numpy()
    assert 0 < numpy.abs(found - weight).max() < error
    (norm,) = [each for each in reader.tensors if each.name == "blk.0.attn_norm.weight"]
    assert norm.tensor_type.name == "F32"


def test_rows_that_are_no_whole_blocks_are_kept_in_half_precision(make, tmp_path):
    write_gguf(make(plain, intermediate_size=40), tmp_path / "model.gguf", "q8_0")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_rotary_frequencies_of_llama_3_are_those_of_transformers():
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=scaling)
    expected = LlamaRotaryEmbedding(config).inv_freq
    plain = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / rope_factors(config, 64), expected)
    assert rope_factors(LlamaConfig(), 64) is None


def test_what_follows_a_prompt_stands_in_the_file(make, tmp_path):
    checkpoint = make(latents(2, "scaled"))
    write_gguf(checkpoint, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    found, spec = json.loads(fields[DECODING].contents()), checkpoint.decoding
    assert found["latents"] == 2
    assert (found["prefix_ids"], found["suffix_ids"]) == (list(spec.prefix_ids), list(spec.suffix_ids))
    norms = checkpoint.model.get_input_embeddings().weight.detach().norm(dim=-1)
    assert found["feed"] == "scaled"
    assert found["norm"] == pytest.approx(float(norms.mean()), rel=1e-6)
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[spec.prefix_ids[0]] == checkpoint.tokenizer.convert_ids_to_tokens(spec.prefix_ids[0])


@pytest.mark.parametrize(
    ("spec", "sizes", "message"),
    [
        (plain, {"tokenizer": "words"}, "tokenizer is not byte-level BPE.*tokenizer: bpe"),
        (plain, {"architecture": "gpt2", "kv_heads": None}, "is a model of type gpt2"),
        (latents(2, iterations=1), {}, "answers with Jacobi iterations"),
        (looped, {}, "answers with a loop over its layers"),
    ],
)
def test_what_has_no_form_is_refused_and_leaves_nothing(make, tmp_path, spec, sizes, message):
    with pytest.raises(CopraError, match=message):
        write_gguf(make(spec, **sizes), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_the_command(make, tmp_path, capsys):
    make(latents(2))
    file = tmp_path / "model.gguf"
    assert main(["gguf", str(tmp_path / "model"), str(file), "--type", "q8_0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{file}: llama@0+x, q8_0, ")
    assert "It thinks in latents" in printed
    assert main(["gguf", str(tmp_path / "model"), str(file)]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "cut"),
    [
        (plain, None),
        (plain, UNEQUAL),
        (latents(3), None),
        (latents(3, "scaled"), UNEQUAL),
        (latents(2, thought="embedding"), FEWER),
        (latents(0), None),
    ],
)
def test_llama_cpp_writes_the_same_tokens(make, tmp_path, spec, cut):
    checkpoint = make(spec, cut=cut)
    write_gguf(checkpoint, tmp_path / "model.gguf", "f32")
    assert_same_tokens(checkpoint, gguf_model(tmp_path / "model.gguf"), QUESTIONS, 24)
