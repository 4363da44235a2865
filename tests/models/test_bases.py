import json

import pytest
import torch
from gguf_file import write_gguf
from little import SIZES, model_for, tokenizer_for
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from copra.data.tokenization import markers_of
from copra.models.bases import make_base
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.per_layer import CopraLlamaForCausalLM
from copra.schema.base import Base, FromScratch
from copra.utils.errors import CopraError
from helpers.manifests import provenance


@pytest.mark.parametrize(("architecture", "kv_heads"), [("llama", 2), ("gpt2", None)])
def test_a_base_from_scratch_is_drawn_by_its_seed(rows, architecture, kv_heads):
    spec = FromScratch(**SIZES, architecture=architecture, kv_heads=kv_heads, max_position_embeddings=64)
    models = [make_base(Base(from_scratch=spec), rows, seed) for seed in (3, 3, 4)]
    states = [model.state_dict() for model, _ in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    embeddings = [model.get_input_embeddings().weight for model, _ in models]
    assert not torch.equal(embeddings[0], embeddings[2])
    tokenizer = models[0][1]
    assert tokenizer.get_vocab() == models[2][1].get_vocab()
    assert markers_of(tokenizer).end == len(tokenizer) - 1
    assert models[0][0].config.vocab_size == len(tokenizer)


def test_a_llama_from_scratch_has_the_sizes_of_its_settings(rows):
    spec = FromScratch(**SIZES, kv_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
    model, tokenizer = make_base(Base(from_scratch=spec, dtype="bfloat16"), rows, 0)
    v, d, layers, ffn, kv = len(tokenizer), 32, 2, 48, 2 * 8
    expected = 2 * v * d + layers * (2 * d * d + 2 * d * kv + 3 * d * ffn + 2 * d) + d
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 64
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_a_gpt2_from_scratch_has_the_sizes_of_its_settings(rows):
    spec = FromScratch(**SIZES, architecture="gpt2", max_position_embeddings=64, dropout=0.2)
    model, tokenizer = make_base(Base(from_scratch=spec), rows, 0)
    v, d, ffn = len(tokenizer), 32, 48
    layer = (d * 3 * d + 3 * d) + (d * d + d) + (d * ffn + ffn) + (ffn * d + d) + 4 * d
    expected = v * d + 64 * d + 2 * layer + 2 * d
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    dropouts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts == [0.2] * len(dropouts) != []


@pytest.fixture
def folder(tmp_path, rows):
    tokenizer = tokenizer_for(rows)
    model_for(tokenizer, tied=False).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_comes_from_a_local_folder(folder, rows, monkeypatch):
    monkeypatch.setenv("SOME_MODELS", str(folder.parent))
    model, tokenizer = make_base(Base(path="${SOME_MODELS}/base"), [], None)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    size = plain.config.vocab_size
    assert torch.equal(model.get_input_embeddings().weight[:size], plain.get_input_embeddings().weight)
    assert torch.equal(model.get_output_embeddings().weight[:size], plain.get_output_embeddings().weight)
    assert len(tokenizer) == model.config.vocab_size == size + 3
    assert model.dtype == torch.float32
    assert make_base(Base(path=str(folder), dtype="bfloat16"), [], None)[0].dtype == torch.bfloat16


def test_a_pruned_model_with_unequal_layers_can_be_a_base(make_model, tmp_path, rows):
    tokenizer = tokenizer_for(rows)
    model = make_model("copra_llama", len(tokenizer), double=False)
    model.save_pretrained(tmp_path / "pruned")
    tokenizer.save_pretrained(tmp_path / "pruned")
    again, _ = make_base(Base(path=str(tmp_path / "pruned")), [], None)
    assert isinstance(again, CopraLlamaForCausalLM)
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CopraError, match=r"^bases\.<name>\.path: .*empty' has no config\.json\. Give"):
        make_base(Base(path=str(tmp_path / "empty")), [], None)


def test_an_unknown_type_is_refused_before_its_weights_are_looked_for(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(CopraError, match=r"model_type 'mixtral' is not supported.*llama"):
        make_base(Base(path=str(tmp_path)), [], None)


def test_weights_that_are_cut_short_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CopraError, match="could not be loaded"):
        make_base(Base(path=str(folder)), [], None)


def test_weights_in_a_pickle_are_refused(folder):
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CopraError, match=r"pytorch_model\.bin, a pickle.*convert it"):
        make_base(Base(path=str(folder)), [], None)


@pytest.mark.parametrize("pad", [-1, 10_000])
def test_a_pad_token_outside_the_vocabulary_is_left_out(folder, pad):
    plain = make_base(Base(path=str(folder)), [], None)[0].state_dict()
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"pad_token_id": pad}))
    model, _ = make_base(Base(path=str(folder)), [], None)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (None, None)
    assert model.get_input_embeddings().padding_idx is None
    assert all(torch.equal(weight, plain[name]) for name, weight in model.state_dict().items())


def test_settings_of_sampling_go_and_special_tokens_stay(folder):
    settings = {
        "temperature": 0.9,
        "top_p": 0.6,
        "do_sample": False,
        "eos_token_id": [1, 2],
        "bos_token_id": 0,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model, tokenizer = make_base(Base(path=str(folder)), [], None)
    kept = model.generation_config
    assert (kept.eos_token_id, kept.bos_token_id, kept.temperature, kept.do_sample) == ([1, 2], 0, None, None)
    save_checkpoint(folder.parent / "saved", model, tokenizer, provenance())
    assert load_checkpoint(folder.parent / "saved").model.generation_config.eos_token_id == [1, 2]


def test_a_head_of_its_own_is_kept_though_the_config_ties_it(folder):
    """A vocabulary that grows ties it again: the trained head would be gone without a word."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    model, tokenizer = make_base(Base(path=str(folder)), [], None)
    size = len(weights["lm_head.weight"])
    save_checkpoint(folder.parent / "saved", model, tokenizer, provenance())
    for made in (model, load_checkpoint(folder.parent / "saved").model.cpu()):
        assert torch.equal(made.lm_head.weight[:size], weights["lm_head.weight"])
        assert torch.equal(made.model.embed_tokens.weight[:size], weights["model.embed_tokens.weight"])
        assert made.config.vocab_size == size + 3
        assert not made.config.tie_word_embeddings


def test_weights_of_another_shape_are_refused_by_name(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))
    with pytest.raises(
        CopraError, match=r"^bases\.<name>\.path: .*down_proj\.weight \[32, 16\] instead of \[32, 24\]"
    ):
        make_base(Base(path=str(folder)), [], None)


def test_quantized_weights_of_the_hub_are_refused_before_they_are_fetched(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | quantized))
    monkeypatch.setattr("copra.models.bases.base_problem", lambda base: None)
    monkeypatch.setattr("copra.models.bases.load_language_model", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(CopraError, match=r"^bases\.<name>\.path: .*has weights quantized by gptq"):
        make_base(Base(path=str(folder)), [], None)


def test_a_base_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CopraError, match=r"^bases\.<name>\.path: .*absent' is not there"):
        make_base(Base(path=str(tmp_path / "absent")), [], None)


def test_a_gguf_file_is_a_base(tmp_path, rows):
    pytest.importorskip("gguf", reason="GGUF files need the package gguf")
    tokenizer = tokenizer_for(rows)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes))
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    made, again = make_base(Base(path=str(tmp_path / "model.gguf")), [], None)
    state = made.state_dict()
    assert all(torch.equal(weight, state[name][: len(weight)]) for name, weight in model.state_dict().items())
    assert again("2 and 13 ?\n")["input_ids"] == tokenizer("2 and 13 ?\n")["input_ids"]
    save_checkpoint(tmp_path / "saved", made, again, provenance())
    saved = load_checkpoint(tmp_path / "saved").model.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in state.items())


def test_a_tokenizer_without_end_is_refused(folder, rows):
    tokenizer = tokenizer_for(rows)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CopraError, match="no end token"):
        make_base(Base(path=str(folder)), [], None)


def test_a_kind_of_model_that_copra_does_not_know_is_refused(tmp_path, rows):
    tokenizer = tokenizer_for(rows)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), is_decoder=True, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CopraError, match="'bert' is not supported"):
        make_base(Base(path=str(tmp_path)), [], None)
