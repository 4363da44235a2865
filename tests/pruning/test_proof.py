import copy

import pytest
import torch

from copra.errors import CopraError
from copra.models.shape import shape_of
from copra.pruning.proof import masked, prove
from copra.pruning.surgery import prune


@pytest.fixture
def two_of_three(plan_for):
    return lambda model: plan_for(
        shape_of(model.config.to_dict()), unit="layers", metric="deepest", budget={"count": 1}
    )


@pytest.fixture
def half_of_the_groups(plan_for):
    return lambda model: plan_for(
        shape_of(model.config.to_dict()), unit="kv_groups", metric="random", budget={"count": 3}
    )


@torch.no_grad()
def test_a_masked_layer_is_skipped(llama, inputs, two_of_three):
    model = llama()
    plan = two_of_three(model)
    assert plan["kept"]["layers"] == [0, 2]
    dense = model(**inputs).logits
    with masked(model, plan):
        skipped = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, dense), "the masks are gone afterwards"
    model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.model.layers[1].mlp.down_proj.weight.zero_()
    assert torch.equal(model(**inputs).logits, skipped)
    assert not torch.allclose(skipped, dense)


@torch.no_grad()
def test_a_masked_group_gives_nothing_to_the_output_projection(llama, inputs, half_of_the_groups):
    model = llama(8, 2)
    plan = half_of_the_groups(model)
    with masked(model, plan):
        expected = model(**inputs).logits
    for layer, (kept,) in enumerate(plan["kept"]["kv_groups"]):
        gone = 1 - kept
        model.model.layers[layer].self_attn.o_proj.weight[:, gone * 32 : (gone + 1) * 32] = 0
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", ["two_of_three", "half_of_the_groups"])
def test_a_right_cut_is_proved_and_nothing_is_changed(llama, inputs, request, unit, dtype):
    model = llama(tie_word_embeddings=True).to(dtype).train()
    plan = request.getfixturevalue(unit)(model)
    pruned = prune(model, plan)
    states = [copy.deepcopy(one.state_dict()) for one in (model, pruned)]
    assert 0 <= prove(model, pruned, plan, **inputs) < 1e-5
    for one, state in zip((model, pruned), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
        assert {parameter.dtype for parameter in one.parameters()} == {dtype}
        assert one.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.modules())


def test_gpt2_with_dropout_is_proved_too(gpt2, inputs, two_of_three):
    plan = two_of_three(gpt2.train())
    assert gpt2.config.attn_pdrop > 0
    assert prove(gpt2, prune(gpt2, plan), plan, **inputs) < 1e-5


@pytest.mark.parametrize("damage", [1e-2, float("nan")])
def test_a_wrong_cut_is_refused_with_its_figure(llama, inputs, half_of_the_groups, damage):
    model = llama()
    plan = half_of_the_groups(model)
    pruned = prune(model, plan)
    with torch.no_grad():
        pruned.model.layers[1].self_attn.o_proj.weight[3, 5] += damage
    with pytest.raises(CopraError, match=r"differ by (0\.\d+|[\d.e-]+|nan) from"):
        prove(model, pruned, plan, **inputs)


def test_another_choice_of_layers_is_noticed(llama, inputs, two_of_three):
    model = llama()
    plan = two_of_three(model)
    other = prune(model, {**plan, "kept": {"layers": [0, 1]}})
    with pytest.raises(CopraError, match="differ by"):
        prove(model, other, plan, **inputs)


def test_padding_is_left_out(llama, inputs, two_of_three):
    model = llama()
    plan = two_of_three(model)
    pruned = prune(model, plan)
    with torch.no_grad():
        # Token 49 stands under the padding alone, so only logits at padding feel this.
        ids = inputs["input_ids"].clamp(max=48).masked_fill(inputs["attention_mask"] == 0, 49)
        weight = pruned.model.embed_tokens.weight.clone()
        weight[49] += 1
        pruned.model.embed_tokens.weight = torch.nn.Parameter(weight)
    assert prove(model, pruned, plan, ids, inputs["attention_mask"]) < 1e-5
