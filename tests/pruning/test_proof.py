import copy
import random

import pytest
import torch

from copra.pruning.proof import LIMIT, masked, verify
from copra.pruning.surgery import prune
from copra.utils.errors import CopraError

CUTS = {
    "layers": {"layers": [0, 2]},
    "groups": {"groups": [[0], [1], [0]]},
    "heads": {"heads": [[0, 2], [1, 3], [0, 3]]},
    "neurons": {"neurons": [[0, 1], None, [7, 8, 39]]},
    "all": {"layers": [1, 2], "heads": [None, [1, 2], [3]], "neurons": [None, [5], None]},
}


@torch.no_grad()
def test_a_masked_layer_is_skipped(llama, inputs, keep):
    model = llama()
    dense = model(**inputs).logits
    with masked(model, keep(model, layers=[0, 2])):
        skipped = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, dense), "the masks are gone afterwards"
    model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.model.layers[1].mlp.down_proj.weight.zero_()
    assert torch.equal(model(**inputs).logits, skipped)
    assert not torch.allclose(skipped, dense)


@torch.no_grad()
@pytest.mark.parametrize("kept", [[[0], [1], [0]], [[1], [0, 1], []]])
def test_masked_groups_give_nothing_to_the_output_projection(llama, inputs, keep, kept):
    model = llama(8, 2)
    with masked(model, keep(model, groups=kept)):
        expected = model(**inputs).logits
    for layer, groups in zip(model.model.layers, kept, strict=True):
        for gone in {0, 1} - set(groups):
            layer.self_attn.o_proj.weight[:, gone * 32 : (gone + 1) * 32] = 0
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)


@torch.no_grad()
def test_any_heads_and_neurons_can_be_masked(llama, inputs, keep):
    """Unequal numbers in groups too, and all of a layer, which leaves its biases."""
    model = llama(8, 2, attention_bias=True, mlp_bias=True)
    heads, neurons = [[0, 4, 5, 7], [], None], [None, [3, 5], []]
    with masked(model, keep(model, heads=heads, neurons=neurons)):
        expected = model(**inputs).logits
    for layer, some_heads, some_neurons in zip(model.model.layers, heads, neurons, strict=True):
        for head in set(range(8)) - set(range(8) if some_heads is None else some_heads):
            layer.self_attn.o_proj.weight[:, head * 8 : (head + 1) * 8] = 0
        for neuron in set(range(40)) - set(range(40) if some_neurons is None else some_neurons):
            layer.mlp.down_proj.weight[:, neuron] = 0
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)


@torch.no_grad()
def test_heads_neurons_and_layers_of_gpt2_can_be_masked(gpt2, inputs, keep):
    heads, neurons = [[0, 3], [], None, [1]], [None, [3, 5], [0], []]
    with masked(gpt2, keep(gpt2, layers=[0, 1, 3], heads=heads, neurons=neurons)):
        expected = gpt2(**inputs).logits
    for block, some_heads, some_neurons in zip(gpt2.transformer.h, heads, neurons, strict=True):
        for head in set(range(4)) - set(range(4) if some_heads is None else some_heads):
            block.attn.c_proj.weight[head * 8 : (head + 1) * 8] = 0
        for neuron in set(range(128)) - set(range(128) if some_neurons is None else some_neurons):
            block.mlp.c_proj.weight[neuron] = 0
    gone = gpt2.transformer.h[2]
    for parameter in (*gone.attn.c_proj.parameters(), *gone.mlp.c_proj.parameters()):
        parameter.zero_()
    assert torch.allclose(gpt2(**inputs).logits, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CUTS)
def test_a_right_cut_is_proved_and_nothing_is_changed(llama, inputs, keep, plan_of, kind, dtype):
    model = llama(tie_word_embeddings=True).train()
    for parameter in model.parameters():  # not the rotary frequencies, which stay in float32 when loaded
        parameter.data = parameter.data.to(dtype)
    plan = plan_of(model, keep(model, **CUTS[kind]))
    pruned = prune(model, plan)
    states = [copy.deepcopy(one.state_dict()) for one in (model, pruned)]
    assert 0 <= verify(model, pruned, plan, **inputs) < 1e-5
    for one, state in zip((model, pruned), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
        assert {parameter.dtype for parameter in one.parameters()} == {dtype}
        assert one.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.modules())


@pytest.mark.parametrize("kept", [{"layers": [0, 3]}, {"heads": [[0], [1, 2], None, [3]]}])
def test_gpt2_with_dropout_is_proved_too(gpt2, inputs, keep, plan_of, kept):
    plan = plan_of(gpt2.train(), keep(gpt2, **kept))
    assert gpt2.config.attn_pdrop > 0
    assert verify(gpt2, prune(gpt2, plan), plan, **inputs) < 1e-5


@pytest.mark.parametrize("damage", [1e-2, float("nan")])
def test_a_wrong_cut_is_refused_with_its_figure(llama, inputs, keep, plan_of, damage):
    model = llama()
    plan = plan_of(model, keep(model, groups=[[0], [1], [0]]))
    pruned = prune(model, plan)
    with torch.no_grad():
        pruned.model.layers[1].self_attn.o_proj.weight[3, 5] += damage
    with pytest.raises(CopraError, match=r"differ by (0\.\d+|[\d.e-]+|nan) from"):
        verify(model, pruned, plan, **inputs)


OTHERS = {
    "layers": {"layers": [0, 1]},
    "groups": {"groups": [[0], [1], [1]]},
    "heads": {"heads": [[0, 2], [0, 3], [0, 3]]},
    "neurons": {"neurons": [[0, 1], None, [7, 8, 38]]},
    "all": {"layers": [1, 2], "heads": [None, [1, 2], [3]], "neurons": [None, [6], None]},
}


@pytest.mark.parametrize("kind", CUTS)
def test_another_choice_is_noticed(llama, inputs, keep, plan_of, kind):
    model = llama()
    other = prune(model, plan_of(model, keep(model, **OTHERS[kind])))
    with pytest.raises(CopraError, match="differ by"):
        verify(model, other, plan_of(model, keep(model, **CUTS[kind])), **inputs)


@pytest.mark.slow
@torch.no_grad()
def test_logits_of_real_size_do_not_hide_a_right_cut_or_a_wrong_one(llama, inputs, keep, plan_of):
    """In float32 this cut, which is right, differs by more than 1e-4, as those of real models do."""
    model = llama(layers=24, intermediate_size=2000, initializer_range=1.0)
    model.lm_head.weight *= 50 / model(**inputs).logits.abs().max()
    draw = random.Random(0)
    neurons = [sorted(draw.sample(range(2000), 1000)) for _ in range(24)]
    cut = keep(model, heads=[[0, 2]] * 24, neurons=neurons)
    plan = plan_of(model, cut)
    pruned = prune(model, plan)
    with masked(model, cut):
        rounded = pruned(**inputs).logits - model(**inputs).logits
    assert rounded.abs().max() > 1e-6, "no rounding, so that this test could not fail"
    assert verify(model, pruned, plan, **inputs) < LIMIT / 10
    gone = neurons[20].index(max(neurons[20]))
    neurons[20][gone] = next(neuron for neuron in range(2000) if neuron not in neurons[20])
    neurons[20].sort()
    wrong = prune(model, plan_of(model, keep(model, heads=[[0, 2]] * 24, neurons=neurons)))
    with pytest.raises(CopraError, match="differ by"):
        verify(model, wrong, plan, **inputs)


def swap_heads(pruned):
    queries = pruned.model.layers[1].self_attn.q_proj.weight
    queries.data = queries.data.roll(8, 0)


def shift_neurons(pruned):
    up = pruned.model.layers[1].mlp.up_proj.weight
    up.data = up.data.roll(1, 0)


def share_a_cache(pruned):
    pruned.model.layers[1].self_attn.layer_idx = 0


@pytest.mark.parametrize("spoil", [swap_heads, shift_neurons, share_a_cache])
def test_weights_and_layers_in_the_wrong_places_are_noticed(llama, inputs, keep, plan_of, spoil):
    model = llama(8, 2)
    plan = plan_of(model, keep(model, layers=[0, 2], heads=[[0, 1, 4, 5]] * 3, neurons=[list(range(30))] * 3))
    pruned = prune(model, plan)
    assert verify(model, pruned, plan, **inputs) < LIMIT / 10
    spoil(pruned)
    with pytest.raises(CopraError, match="differ by"):
        verify(model, pruned, plan, **inputs)


def test_a_failing_proof_leaves_the_weights_as_they_were(llama, inputs, keep, plan_of):
    model = llama()
    plan = plan_of(model, keep(model, layers=[0, 2]))
    pruned = prune(model, plan)
    pruned.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify(model, pruned, plan, **inputs)
    assert {parameter.dtype for each in (model, pruned) for parameter in each.parameters()} == {torch.float32}


def test_a_plan_of_another_model_is_refused(llama, inputs, keep, plan_of):
    model, other = llama(), llama(8, 2)
    plan = plan_of(other, keep(other, layers=[0, 2]))
    with pytest.raises(CopraError, match="made for a model of 3 layers with other sizes"):
        verify(model, prune(other, plan), plan, **inputs)


def test_padding_is_left_out(llama, inputs, keep, plan_of):
    model = llama()
    plan = plan_of(model, keep(model, layers=[0, 2]))
    pruned = prune(model, plan)
    with torch.no_grad():
        # Token 49 stands under the padding alone, so only logits at padding feel this.
        ids = inputs["input_ids"].clamp(max=48).masked_fill(inputs["attention_mask"] == 0, 49)
        weight = pruned.model.embed_tokens.weight.clone()
        weight[49] += 1
        pruned.model.embed_tokens.weight = torch.nn.Parameter(weight)
    assert verify(model, pruned, plan, ids, inputs["attention_mask"]) < 1e-5
