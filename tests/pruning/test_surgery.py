import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from copra.errors import CopraError
from copra.models import copra_llama
from copra.models.copra_llama import CopraLlamaForCausalLM
from copra.models.shape import LayerShape, ModelShape, shape_of
from copra.pruning.plan import pruned_shape
from copra.pruning.proof import masked
from copra.pruning.surgery import prune


def plan_of(model, unit, kept):
    """A plan that keeps exactly these units, with as much of a record as surgery reads."""
    shape = shape_of(model.config.to_dict())
    return {
        "unit": unit,
        "kept": {unit: kept},
        "shape_before": shape.to_json(),
        "shape_after": pruned_shape(shape, unit, kept).to_json(),
    }


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def cut_and_check(model, unit, kept, inputs):
    """The cut model, after a comparison with the masked one."""
    plan = json.loads(json.dumps(plan_of(model, unit, kept)))
    before = copy.deepcopy(model.state_dict())
    with masked(model, plan):
        expected = logits(model, inputs)
    cut = prune(model, plan)
    assert torch.allclose(logits(cut, inputs), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, logits(model, inputs), atol=1e-3), "the units did nothing"
    assert shape_of(cut.config.to_dict()) == ModelShape.from_json(plan["shape_after"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return cut


def check_reload(cut, inputs, folder):
    """Saved and loaded again the model is the same, to the bit, and of the same class."""
    cut.save_pretrained(folder)
    copra_llama.register()
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert type(again) is type(cut)
    assert again.num_parameters() == cut.num_parameters()
    assert torch.equal(logits(again, inputs), logits(cut, inputs))
    assert again.config.to_dict() == {**cut.config.to_dict(), "_name_or_path": str(folder)}


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 3), (8, 2), (12, 4)])
@pytest.mark.parametrize("kept", [[[0], [0], [0]], [[1], [1], [1]], [[0], [0, 1], [1]]])
@pytest.mark.parametrize("bias", [False, True])
def test_cut_groups_equal_masked_groups(llama, inputs, heads, kv_heads, kept, bias):
    # head_dim 8 is not hidden_size / heads, and 6 and 12 heads do not divide 32: those dense models are
    # of the heterogeneous class already.
    model = _any_llama(llama, heads, kv_heads, bias)
    cut = cut_and_check(model, "kv_groups", kept, inputs)
    assert cut.num_parameters() < model.num_parameters()
    alike = len({len(groups) for groups in kept}) == 1
    plain = alike and 32 % (heads // kv_heads * len(kept[0])) == 0
    assert type(cut) is (LlamaForCausalLM if plain else CopraLlamaForCausalLM)


def _any_llama(llama, heads, kv_heads, bias):
    sizes = {"attention_bias": bias, "mlp_bias": bias}
    if 32 % heads == 0:
        model = llama(heads, kv_heads, **sizes)
    else:
        like = llama(8, 4, **sizes)
        values = {**like.config.to_dict(), "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        del values["model_type"]
        torch.manual_seed(0)
        model = CopraLlamaForCausalLM(copra_llama.CopraLlamaConfig(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_choice_of_groups_and_layers_is_cut_as_it_is_masked(data):
    kv_heads = data.draw(st.sampled_from([1, 2, 4]))
    layers = data.draw(st.integers(2, 4))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    config = copra_llama.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=4,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    input_ids = torch.randint(50, (2, 6))
    for _ in range(2):
        shape = shape_of(model.config.to_dict())
        if data.draw(st.booleans()):
            unit, counts = "layers", [len(shape.layers)]
        else:
            unit, counts = "kv_groups", [layer.kv_heads for layer in shape.layers]
        kept = [sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))) for n in counts]
        plan = plan_of(model, unit, kept[0] if unit == "layers" else kept)
        with masked(model, plan), torch.no_grad():
            expected = model(input_ids).logits
        model = prune(model, plan)
        assert torch.allclose(model(input_ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [[0, 1], [1, 2], [0, 2], [1]])
@pytest.mark.parametrize("tied", [True, False])
def test_cut_layers_equal_masked_layers_in_llama(llama, inputs, tmp_path, kept, tied):
    model = llama(tie_word_embeddings=tied)
    cut = cut_and_check(model, "layers", kept, inputs)
    assert type(cut) is LlamaForCausalLM
    assert [layer.self_attn.layer_idx for layer in cut.model.layers] == list(range(len(kept)))
    assert (cut.lm_head.weight is cut.model.embed_tokens.weight) == tied
    check_reload(cut, inputs, tmp_path)


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 3], [2]])
def test_cut_layers_equal_masked_layers_in_gpt2(gpt2, inputs, tmp_path, kept):
    cut = cut_and_check(gpt2, "layers", kept, inputs)
    assert type(cut) is GPT2LMHeadModel
    assert [block.attn.layer_idx for block in cut.transformer.h] == list(range(len(kept)))
    assert cut.lm_head.weight is cut.transformer.wte.weight
    check_reload(cut, inputs, tmp_path)


def test_layers_then_groups_then_layers(llama, inputs, tmp_path):
    first = cut_and_check(llama(8, 4, layers=5, tie_word_embeddings=True), "layers", [0, 1, 3, 4], inputs)
    second = cut_and_check(first, "kv_groups", [[0, 1, 2, 3], [1, 2], [3], [0, 2]], inputs)
    assert type(second) is CopraLlamaForCausalLM
    check_reload(second, inputs, tmp_path / "second")
    third = cut_and_check(second, "layers", [0, 1, 2], inputs)
    fourth = cut_and_check(third, "kv_groups", [[0, 3], [1], [0]], inputs)
    check_reload(fourth, inputs, tmp_path / "fourth")
    # What is left of equal layers is a plain Llama again.
    last = cut_and_check(fourth, "layers", [1, 2], inputs)
    assert type(last) is LlamaForCausalLM
    assert last.config.head_dim == 8
    check_reload(last, inputs, tmp_path / "last")
    assert not (tmp_path / "last" / "copra_llama.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "last" / "config.json").read_text())


def test_a_heterogeneous_cut_decodes_with_a_cache_as_without(llama, inputs):
    model = llama(8, 4)
    cut = prune(model, plan_of(model, "kv_groups", [[0, 1, 3], [2], [0, 3]]))
    assert type(cut) is CopraLlamaForCausalLM
    input_ids = inputs["input_ids"]
    cache = DynamicCache(config=cut.config)
    steps = [cut(input_ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(11)]
    assert torch.allclose(torch.cat(steps, dim=1), cut(input_ids).logits, atol=1e-5)
    shapes = [tuple(layer.keys.shape) for layer in cache.layers]
    assert shapes == [(3, 3, 11, 8), (3, 1, 11, 8), (3, 2, 11, 8)]


FAMILIES = {
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, "sliding_window": 4}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
}


@pytest.fixture(params=FAMILIES)
def relative(request):
    """A Llama-like model of another family; the Qwen2 one has sliding windows in its upper layers."""
    model_class, config_class, changes = FAMILIES[request.param]
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    if request.param == "qwen2":
        changes = {**changes, "max_window_layers": 2}
    return model_class(config_class(**sizes, **tokens, **changes)).eval()


def test_relatives_of_llama_lose_layers_and_equal_numbers_of_groups(relative, inputs, tmp_path):
    types = getattr(relative.config, "layer_types", None)
    layers = cut_and_check(relative, "layers", [0, 2, 3], inputs)
    assert type(layers) is type(relative)
    if types:
        assert layers.config.layer_types == [types[0], types[2], types[3]]
    groups = cut_and_check(layers, "kv_groups", [[1], [0], [1]], inputs)
    assert type(groups) is type(relative)
    check_reload(groups, inputs, tmp_path)


def test_relatives_of_llama_cannot_have_different_layers(relative):
    with pytest.raises(CopraError, match="uniform"):
        prune(relative, plan_of(relative, "kv_groups", [[0], [0, 1], [0], [0]]))


def test_heads_of_gpt2_are_refused(gpt2):
    plan = {
        "unit": "kv_groups",
        "kept": {"kv_groups": [[0]] * 4},
        "shape_before": shape_of(gpt2.config.to_dict()).to_json(),
    }
    with pytest.raises(CopraError, match="GPT-2"):
        prune(gpt2, plan)


def test_gpt2_whose_attention_depends_on_the_layer_number_is_refused(gpt2):
    gpt2.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(CopraError, match="scale_attn_by_inverse_layer_idx"):
        prune(gpt2, plan_of(gpt2, "layers", [0, 1]))


def test_a_plan_of_another_model_is_refused(llama):
    plan = plan_of(llama(layers=4), "layers", [0, 1])
    with pytest.raises(CopraError, match="4 layers"):
        prune(llama(layers=3), plan)


def test_what_belongs_to_the_model_comes_along(llama, inputs):
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    model = llama(rope_parameters=rope).to(torch.bfloat16).train()
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 7
    cut = prune(model, plan_of(model, "kv_groups", [[0], [0, 1], [1]]))
    assert cut.training
    assert {parameter.dtype for parameter in cut.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in cut.parameters())
    assert cut.config._attn_implementation == "eager"
    assert cut.generation_config.max_new_tokens == 7
    assert cut.config.rope_parameters == rope
    # Frequencies are fresh and in float32, whatever a change of type did to those of the dense model.
    assert cut.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(cut.model.rotary_emb.inv_freq, llama(rope_parameters=rope).model.rotary_emb.inv_freq)


def test_untouched_weights_are_shared_and_not_copied(llama):
    model = llama()
    cut = prune(model, plan_of(model, "kv_groups", [[0], [0, 1], [0, 1]]))
    assert cut.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert (
        cut.model.layers[0].mlp.up_proj.weight.data_ptr()
        == model.model.layers[0].mlp.up_proj.weight.data_ptr()
    )
    assert cut.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)


def test_the_shape_of_a_cut_model_is_read_from_its_config(llama):
    model = llama(8, 4)
    cut = prune(model, plan_of(model, "kv_groups", [[0, 1, 3], [2], [0, 3]]))
    assert shape_of(cut.config.to_dict()).layers == (
        LayerShape(6, 3, 8, 40),
        LayerShape(2, 1, 8, 40),
        LayerShape(4, 2, 8, 40),
    )
