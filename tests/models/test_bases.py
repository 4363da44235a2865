import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from copra.errors import CopraError
from copra.models.bases import add_markers, make_base, start_markers
from copra.models.per_layer import CopraLlamaForCausalLM
from copra.models.settings import Base, FromScratch
from copra.models.tokens import MARKERS, markers_of, train_tokenizer

SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "ffn_size": 48}


def tokenizer_for(rows, **changes):
    """A tokenizer without markers."""
    return train_tokenizer(FromScratch(**{**SIZES, "tokenizer": "bpe", "vocabulary": 300, **changes}), rows)


def model_for(tokenizer, architecture: str = "llama", tied: bool = True, extra: int = 0):
    torch.manual_seed(0)
    shared = {"vocab_size": len(tokenizer) + extra, "tie_word_embeddings": tied, "eos_token_id": 1}
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shared, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(**shared, **sizes))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_markers_begin_as_copies_of_the_row_of_the_angle_brackets(rows, architecture, tied):
    tokenizer = tokenizer_for(rows)
    model = model_for(tokenizer, architecture, tied)
    size = len(tokenizer)
    embedding = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    first = tokenizer("<<")["input_ids"][0]
    add_markers(model, tokenizer)
    assert len(tokenizer) == model.config.vocab_size == size + 3
    assert [tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS] == [size, size + 1, size + 2]
    for module, before in ((model.get_input_embeddings(), embedding), (model.get_output_embeddings(), head)):
        assert module.weight.shape == (size + 3, 32)
        assert torch.equal(module.weight[:size], before)
        assert torch.equal(module.weight[size:], before[first].expand(3, -1))
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == tied
    assert torch.equal(embedding, head) == tied
    assert model(torch.tensor([[size, size + 1, size + 2]])).logits.shape == (1, 3, size + 3)


def test_without_angle_brackets_markers_begin_as_the_line_break(word_base):
    base = word_base(tied=False)
    assert base.tokenizer("<<")["input_ids"] == [base.tokenizer.unk_token_id]
    (line_break,) = base.tokenizer("\n")["input_ids"]
    markers = base.tokenizer.convert_tokens_to_ids(list(MARKERS))
    modules = (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    before = [module.weight.detach().clone() for module in modules]
    start_markers(base.model, base.tokenizer)
    for module, old in zip(modules, before, strict=True):
        assert torch.equal(module.weight[markers], old[line_break].expand(3, -1))
        assert torch.equal(module.weight[: markers[0]], old[: markers[0]])


def test_spare_rows_of_the_embedding_are_used_first(rows):
    tokenizer = tokenizer_for(rows)
    size = len(tokenizer)
    model = model_for(tokenizer, extra=10)
    add_markers(model, tokenizer)
    assert model.config.vocab_size == size + 10
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[size + 2], weight[tokenizer("<<")["input_ids"][0]])


def test_other_special_tokens_stay(rows):
    tokenizer = tokenizer_for(rows)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    add_markers(model_for(tokenizer), tokenizer)
    assert {"<|mine|>", *MARKERS, "<|pad|>", "<|end|>"} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(("architecture", "kv_heads"), [("llama", 2), ("gpt2", None)])
def test_a_base_from_scratch_is_drawn_by_its_seed(rows, architecture, kv_heads):
    spec = FromScratch(**SIZES, architecture=architecture, kv_heads=kv_heads, context=64)
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
    spec = FromScratch(**SIZES, kv_heads=2, context=64, tied=False)
    model, tokenizer = make_base(Base(from_scratch=spec, dtype="bfloat16"), rows, 0)
    v, d, layers, ffn, kv = len(tokenizer), 32, 2, 48, 2 * 8
    expected = 2 * v * d + layers * (2 * d * d + 2 * d * kv + 3 * d * ffn + 2 * d) + d
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 64
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_a_gpt2_from_scratch_has_the_sizes_of_its_settings(rows):
    spec = FromScratch(**SIZES, architecture="gpt2", context=64, dropout=0.2)
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
    with pytest.raises(CopraError, match=r"(?s)empty' could not be loaded.*bases\.<name>\.path"):
        make_base(Base(path=str(tmp_path / "empty")), [], None)


def test_an_unknown_type_is_refused_before_its_weights_are_looked_for(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(CopraError, match=r"base model .*: model_type 'mixtral' is not supported.*llama"):
        make_base(Base(path=str(tmp_path)), [], None)


def test_weights_that_are_cut_short_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CopraError, match="could not be loaded"):
        make_base(Base(path=str(folder)), [], None)


def test_weights_in_a_pickle_are_refused(folder):
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CopraError, match="could not be loaded"):
        make_base(Base(path=str(folder)), [], None)


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
