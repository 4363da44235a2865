"""Weights that are not those that a config describes, and such as are as good as those."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.models.loading import load_language_model
from copra.utils.errors import CopraError

WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(tmp_path):
    """Save a tiny model and change the weights in its file; returns the folder and the model."""

    def save(change=lambda weights: weights, tied=True, architecture="llama", **sizes):
        torch.manual_seed(0)
        shared = {"vocab_size": 20, "tie_word_embeddings": tied}
        if architecture == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(**shared, n_embd=8, n_layer=1, n_head=2, n_positions=16))
        else:
            layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
            model = LlamaForCausalLM(LlamaConfig(**shared, hidden_size=8, **layers))
        model.save_pretrained(tmp_path)
        save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS, {"format": "pt"})
        return tmp_path, model

    return save


def without(weights, part):
    return {key: weight for key, weight in weights.items() if part not in key}


def renamed(weights, new):
    return {new(key): weight for key, weight in weights.items()}


def within_the_model(key):
    return key.replace("model.", "model._orig_mod.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: without(w, "layers.1."),
            r"9 \(model\.layers\.1\.input_layernorm\.weight, .*, \.\.\.\) are missing",
        ),
        (lambda w: without(w, "model.norm"), r"1 \(model\.norm\.weight\) is missing\. Take a complete copy"),
        (lambda w: without(w, "embed_tokens"), r"embed_tokens\.weight.* missing"),
        (lambda w: renamed(w, "_orig_mod.{}".format), r"missing; .* unexpected\. .* wrapped .*'_orig_mod\.'"),
        (lambda w: renamed(w, within_the_model), r"compiled or wrapped .*'_orig_mod\.'"),
        (lambda w: renamed(w, "module.{}".format), r"compiled or wrapped .*'module\.'"),
        (lambda w: renamed(w, "policy.{}".format), r"have 'policy\.' in front: strip it"),
        (
            lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.zeros(12, 8)},
            r": 1 \(model\.layers\.2\.\S+\) is unexpected",
        ),
        (
            lambda w: w | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 8)},
            r"adapters that were not merged",
        ),
        (
            lambda w: w | {"model.layers.0.self_attn.q_proj.weight_scale": torch.ones(1)},
            r"The weights are quantized",
        ),
        (
            lambda w: w | {"model.norm.weight": torch.ones(9)},
            r"1 \(model\.norm\.weight \[9\] instead of \[8\]\) is of another shape",
        ),
    ],
)
def test_other_weights_than_described_are_refused(saved, change, message):
    folder, _ = saved(change)
    with pytest.raises(CopraError, match=rf"^the name: its weights are not those .*{message}"):
        load_language_model(folder, "the name")


def test_an_untied_head_needs_its_own_weights(saved):
    folder, _ = saved(lambda weights: without(weights, "lm_head"), tied=False)
    with pytest.raises(CopraError, match=r"1 \(lm_head\.weight\) is missing\. .*tie_word_embeddings: true"):
        load_language_model(folder, "the name")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(saved, value, dtype):
    def broken(weights):
        weights = {key: weight.to(dtype) for key, weight in weights.items()}
        weights["model.layers.1.mlp.down_proj.weight"][3, 4] = value
        return weights

    folder, _ = saved(broken)
    message = r"^the name: 1 \(model\.layers\.1\.mlp\.down_proj\.weight\) is not finite"
    with pytest.raises(CopraError, match=message):
        load_language_model(folder, "the name", dtype=torch.float32)


HARMLESS = {
    "llama": {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.rotary_emb.cos_cached": torch.ones(2),
    },
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_the_config_describes_loads_as_it_is(saved, architecture, tied):
    """With buffers of old versions; a tied head has no weights of its own in the file."""
    folder, model = saved(lambda weights: weights | HARMLESS[architecture], tied, architecture)
    assert ("lm_head.weight" in load_file(folder / WEIGHTS)) != tied
    again = load_language_model(folder, "the name").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[key], weight) for key, weight in model.state_dict().items())


def test_a_tied_model_that_also_has_its_head_in_the_file_loads(saved):
    folder, model = saved(
        lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    )
    again = load_language_model(folder, "the name")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_the_log_has_no_report_beside_the_error(saved, caplog, capsys):
    folder, _ = saved(lambda weights: without(weights, "layers.1."))
    with pytest.raises(CopraError):
        load_language_model(folder, "the name")
    assert not re.search("REPORT|MISSING", caplog.text + "".join(capsys.readouterr()))
