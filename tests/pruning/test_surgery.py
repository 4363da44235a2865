import copy
import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from copra.models.checkpoint import register
from copra.models.per_layer import CopraGPT2LMHeadModel, CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.pruning.surgery import cut_model, prune
from copra.schema.shape import LayerShape, ModelShape
from copra.utils.errors import CopraError


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.fixture
def cut_and_check(plan_of, inputs):
    """Cuts a model, after a comparison with the masked one."""

    def check(model, cut):
        plan = plan_of(model, cut)
        before = copy.deepcopy(model.state_dict())
        with masked(model, cut):
            expected = logits(model, inputs)
        pruned = prune(model, plan)
        assert torch.allclose(logits(pruned, inputs), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(expected, logits(model, inputs), atol=1e-3), "the units did nothing"
        assert shape_of(pruned.config.to_dict()) == cut.shape(ModelShape.from_json(plan["shape_before"]))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return pruned

    return check


@pytest.fixture
def check_reload(inputs):
    """Saved and loaded again the model is the same, to the bit, and of the same class."""

    def check(model, folder):
        model.save_pretrained(folder)
        register()
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert type(again) is type(model)
        assert again.num_parameters() == model.num_parameters()
        assert torch.equal(logits(again, inputs), logits(model, inputs))
        assert again.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(folder)}

    return check


def classes(model):
    """The plain class of the model's family, and copra's own."""
    if shape_of(model.config.to_dict()).family == "gpt2":
        return GPT2LMHeadModel, CopraGPT2LMHeadModel
    return LlamaForCausalLM, CopraLlamaForCausalLM


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 3), (8, 2), (12, 4)])
@pytest.mark.parametrize("kept", [[[1], [1], [1]], [[0], [0, 1], [1]]])
def test_groups(llama, cut_and_check, keep, heads, kv_heads, kept):
    # head_dim 8 is not hidden_size / heads, and 6 and 12 heads do not divide 32: those dense models are
    # of the heterogeneous class already.
    model = llama(heads, kv_heads, attention_bias=True, mlp_bias=True)
    pruned = cut_and_check(model, keep(model, groups=kept))
    assert pruned.num_parameters() < model.num_parameters()
    alike = len({len(groups) for groups in kept}) == 1
    plain = alike and 32 % (heads // kv_heads * len(kept[0])) == 0
    assert type(pruned) is classes(model)[not plain]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        # Two of four heads from every group, different ones in each.
        ([[0, 1, 6, 7]] * 3, (4, 2)),
        ([[0, 3, 5, 6], [1, 2, 4, 5], [2, 3, 4, 7]], (4, 2)),
        # A whole group, and of the other all but one.
        ([[5]] * 3, (1, 1)),
        # Three of a group, which do not divide the width.
        ([[0, 1, 3, 4, 6, 7]] * 3, None),
        ([[0, 4], None, [1]], None),
    ],
)
def test_query_heads_in_groups_of_four(llama, cut_and_check, keep, kept, left):
    model = llama(8, 2, attention_bias=True)
    pruned = cut_and_check(model, keep(model, heads=kept))
    assert type(pruned) is classes(model)[left is None]
    if left:
        assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == left


@pytest.mark.parametrize(
    ("kept", "plain"), [([[0, 3, 39]] * 3, True), ([[0], [1], [39]], True), ([[1, 2], None, [5]], False)]
)
def test_neurons_of_llama(llama, cut_and_check, keep, kept, plain):
    model = llama(mlp_bias=True)
    pruned = cut_and_check(model, keep(model, neurons=kept))
    assert type(pruned) is classes(model)[not plain]
    assert pruned.model.layers[0].mlp.up_proj.weight.shape == (len(kept[0]), 32)


@pytest.mark.parametrize("kept", [[0, 1], [1, 2], [0, 2], [1]])
@pytest.mark.parametrize("tied", [True, False])
def test_layers_of_llama(llama, cut_and_check, check_reload, keep, tmp_path, kept, tied):
    model = llama(tie_word_embeddings=tied)
    pruned = cut_and_check(model, keep(model, layers=kept))
    assert type(pruned) is LlamaForCausalLM
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == list(range(len(kept)))
    assert (pruned.lm_head.weight is pruned.model.embed_tokens.weight) == tied
    check_reload(pruned, tmp_path)


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 3], [2]])
def test_layers_of_gpt2(gpt2, cut_and_check, check_reload, keep, tmp_path, kept):
    pruned = cut_and_check(gpt2, keep(gpt2, layers=kept))
    assert type(pruned) is GPT2LMHeadModel
    assert [block.attn.layer_idx for block in pruned.transformer.h] == list(range(len(kept)))
    assert pruned.lm_head.weight is pruned.transformer.wte.weight
    check_reload(pruned, tmp_path)


@pytest.mark.parametrize(
    ("kept", "plain"),
    [
        ({"neurons": [[0, 1, 77]] * 4}, True),
        ({"neurons": [[5], [127], [0], [64]], "layers": [0, 3]}, True),
        ({"neurons": [[5, 6], None, [0], [64]]}, False),
        ({"heads": [[0, 3]] * 4}, False),
        ({"heads": [[0, 1, 2, 3]] * 4, "neurons": [[0]] * 4}, True),
        ({"heads": [[1], [0, 2, 3], None, [2, 3]]}, False),
        ({"heads": [[1], None, None, None], "layers": [1, 2, 3]}, True),
        ({"heads": [[1], [2], [0], [1, 3]], "layers": [0, 3], "neurons": [[9], None, None, [1, 3]]}, False),
    ],
)
def test_heads_and_neurons_of_gpt2(gpt2, cut_and_check, check_reload, keep, tmp_path, kept, plain):
    pruned = cut_and_check(gpt2, keep(gpt2, **kept))
    assert type(pruned) is classes(gpt2)[not plain]
    assert pruned.config.head_dim == 8 if not plain else not hasattr(pruned.config, "head_dim")
    check_reload(pruned, tmp_path)
    assert (tmp_path / "per_layer.py").exists() != plain


def test_layers_heads_and_neurons_in_one_cut(llama, cut_and_check, check_reload, keep, tmp_path):
    model = llama(8, 4, layers=5, attention_bias=True, mlp_bias=True)
    cut = keep(
        model,
        layers=[0, 1, 4],
        heads=[[0, 3, 4, 7], None, [0], [1], [2, 3]],
        neurons=[None, [7, 8, 39], [0], None, [0, 1]],
    )
    pruned = cut_and_check(model, cut)
    assert shape_of(pruned.config.to_dict()).layers == (
        LayerShape(4, 4, 8, 40),
        LayerShape(8, 4, 8, 3),
        LayerShape(2, 1, 8, 2),
    )
    check_reload(pruned, tmp_path)


def test_cuts_one_after_the_other(llama, cut_and_check, check_reload, keep, tmp_path):
    model = llama(8, 4, layers=5, tie_word_embeddings=True)
    first = cut_and_check(model, keep(model, layers=[0, 1, 3, 4]))
    second = cut_and_check(first, keep(first, groups=[None, [1, 2], [3], [0, 2]]))
    assert type(second) is CopraLlamaForCausalLM
    check_reload(second, tmp_path / "second")
    third = cut_and_check(second, keep(second, layers=[0, 1, 2], neurons=[[3, 4, 5], None, None, None]))
    fourth = cut_and_check(third, keep(third, groups=[[0, 3], [1], [0]]))
    check_reload(fourth, tmp_path / "fourth")
    # What is left of equal layers is a plain Llama again.
    last = cut_and_check(fourth, keep(fourth, layers=[1, 2]))
    assert type(last) is LlamaForCausalLM
    assert last.config.head_dim == 8
    check_reload(last, tmp_path / "last")
    assert not (tmp_path / "last" / "per_layer.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "last" / "config.json").read_text())


def test_cuts_of_gpt2_one_after_the_other(gpt2, cut_and_check, check_reload, keep, tmp_path):
    first = cut_and_check(gpt2, keep(gpt2, heads=[None, [0, 1, 3], [2], None]))
    second = cut_and_check(first, keep(first, heads=[[1, 2], [0, 2], None, None], neurons=[[4, 5]] * 4))
    assert [sizes.query_heads for sizes in shape_of(second.config.to_dict()).layers] == [2, 2, 1, 4]
    check_reload(second, tmp_path / "second")
    # What is left of layers whose heads fill the width is a plain GPT-2 again.
    last = cut_and_check(second, keep(second, layers=[3]))
    assert type(last) is GPT2LMHeadModel
    check_reload(last, tmp_path / "last")
    assert not (tmp_path / "last" / "per_layer.py").exists()
    written = json.loads((tmp_path / "last" / "config.json").read_text())
    assert not {"auto_map", "head_dim", "layer_overrides"} & set(written)


def test_a_heterogeneous_cut_decodes_with_a_cache_as_without(llama, inputs, keep):
    model = llama(8, 4)
    pruned = cut_model(model, keep(model, groups=[[0, 1, 3], [2], [0, 3]]))
    assert type(pruned) is CopraLlamaForCausalLM
    input_ids = inputs["input_ids"]
    cache = DynamicCache(config=pruned.config)
    steps = [pruned(input_ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(11)]
    assert torch.allclose(torch.cat(steps, dim=1), pruned(input_ids).logits, atol=1e-5)
    shapes = [tuple(layer.keys.shape) for layer in cache.layers]
    assert shapes == [(3, 3, 11, 8), (3, 1, 11, 8), (3, 2, 11, 8)]


def test_gpt2_whose_attention_depends_on_the_layer_number_keeps_its_layers(gpt2, keep, cut_and_check):
    gpt2.config.scale_attn_by_inverse_layer_idx = True
    gpt2 = GPT2LMHeadModel(gpt2.config).eval()
    with pytest.raises(CopraError, match=r"scale_attn_by_inverse_layer_idx.*Prune kv_groups or neurons"):
        cut_model(gpt2, keep(gpt2, layers=[0, 1]))
    pruned = cut_and_check(gpt2, keep(gpt2, heads=[None, [0], None, [1, 2]]))
    assert pruned.config.scale_attn_by_inverse_layer_idx


def test_illegal_cuts_are_refused(llama, keep):
    model = llama(8, 2)
    with pytest.raises(CopraError, match="needs equally many in each"):
        cut_model(model, keep(model, heads=[None, [0, 1, 4], None]))
    for kept, what in (
        ({"heads": [[], None, None]}, "query head"),
        ({"neurons": [[], None, None]}, "neuron"),
    ):
        with pytest.raises(CopraError, match=f"no {what} would be left in layer 0"):
            cut_model(model, keep(model, **kept))
    with pytest.raises(CopraError, match="no layer would be left"):
        cut_model(model, keep(model, layers=[]))


def test_a_plan_of_another_model_is_refused(llama, keep, plan_of):
    other = llama(layers=4)
    with pytest.raises(CopraError, match="4 layers"):
        prune(llama(layers=3), plan_of(other, keep(other, layers=[0, 1])))


def test_what_belongs_to_the_model_comes_along(llama, keep):
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    model = llama(rope_parameters=rope).to(torch.bfloat16).train()
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 7
    pruned = cut_model(model, keep(model, groups=[[0], [0, 1], [1]]))
    assert pruned.training
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    assert pruned.config._attn_implementation == "eager"
    assert pruned.generation_config.max_new_tokens == 7
    assert pruned.config.rope_parameters == rope
    # Frequencies are fresh and in float32, whatever a change of type did to those of the dense model.
    assert pruned.model.rotary_emb.inv_freq.dtype == torch.float32
    fresh = llama(rope_parameters=rope).model.rotary_emb.inv_freq
    assert torch.equal(pruned.model.rotary_emb.inv_freq, fresh)


def test_untouched_weights_are_shared_and_not_copied(llama, keep):
    model = llama()
    pruned = cut_model(model, keep(model, groups=[[0], None, None], neurons=[None, [1], None]))
    assert pruned.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for layer, part in ((0, "mlp.up_proj"), (1, "self_attn.q_proj"), (2, "mlp.down_proj")):
        ours, whole = (each.model.layers[layer].get_parameter(f"{part}.weight") for each in (pruned, model))
        assert ours.data_ptr() == whole.data_ptr()
    assert pruned.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)


def test_the_weights_that_stay_are_the_right_ones(llama, gpt2):
    """Row by row, by hand: layer 1 keeps heads 1 and 3 (of width 8) and neurons 2 and 5."""
    model = llama(4, 2)
    cut = KeptUnits((1, 2), (None, (1, 3), None), (None, (2, 5), None))
    old, new = model.model.layers[1], cut_model(model, cut).model.layers[0]
    rows = [*range(8, 16), *range(24, 32)]
    assert torch.equal(new.self_attn.q_proj.weight, old.self_attn.q_proj.weight[rows])
    assert torch.equal(new.self_attn.k_proj.weight, old.self_attn.k_proj.weight)
    assert torch.equal(new.self_attn.v_proj.weight, old.self_attn.v_proj.weight)
    assert torch.equal(new.self_attn.o_proj.weight, old.self_attn.o_proj.weight[:, rows])
    for name in ("gate_proj", "up_proj"):
        assert torch.equal(getattr(new.mlp, name).weight, getattr(old.mlp, name).weight[[2, 5]])
    assert torch.equal(new.mlp.down_proj.weight, old.mlp.down_proj.weight[:, [2, 5]])
    cut = KeptUnits((1, 2), (None, (1, 3), None, None), (None, (2, 5), None, None))
    old, new = gpt2.transformer.h[1], cut_model(gpt2, cut).transformer.h[0]
    columns = [*rows, *(32 + row for row in rows), *(64 + row for row in rows)]
    assert torch.equal(new.attn.c_attn.weight, old.attn.c_attn.weight[:, columns])
    assert torch.equal(new.attn.c_attn.bias, old.attn.c_attn.bias[columns])
    assert torch.equal(new.attn.c_proj.weight, old.attn.c_proj.weight[rows])
    assert torch.equal(new.attn.c_proj.bias, old.attn.c_proj.bias)
    assert torch.equal(new.mlp.c_fc.weight, old.mlp.c_fc.weight[:, [2, 5]])
    assert torch.equal(new.mlp.c_fc.bias, old.mlp.c_fc.bias[[2, 5]])
    assert torch.equal(new.mlp.c_proj.weight, old.mlp.c_proj.weight[[2, 5]])


def test_the_shape_of_a_cut_model_is_read_from_its_config(llama, keep):
    model = llama(8, 4)
    pruned = cut_model(model, keep(model, groups=[[0, 1, 3], [2], [0, 3]]))
    assert shape_of(pruned.config.to_dict()).layers == (
        LayerShape(6, 3, 8, 40),
        LayerShape(2, 1, 8, 40),
        LayerShape(4, 2, 8, 40),
    )
