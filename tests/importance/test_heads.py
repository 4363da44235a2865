import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from copra.errors import CopraError
from copra.importance.heads import head_scores
from copra.models.anatomy import attention_output, blocks
from copra.models.shape import shape_of


def by_unit(rows, metric, unit="head"):
    return {
        (row["layer"], row["index"]): row["score"]
        for row in rows
        if (row["metric"], row["unit"]) == (metric, unit)
    }


def loss_of(model, tokens, start):
    """Mean cross-entropy of one example over its tokens from `start` on."""
    logits = model(input_ids=tokens[None]).logits[0]
    return cross_entropy(logits[start - 1 : -1], tokens[start:])


def slope(model, layer, head, tokens, start, step=1e-5):
    """The central difference of the loss in a factor on one head's output."""
    size = shape_of(model.config.to_dict()).layers[layer].head_dim
    losses = []
    for factor in (1 + step, 1 - step):
        gate = torch.ones(attention_output(blocks(model)[layer]).weight.numel() // 32, dtype=torch.float64)
        gate[head * size : (head + 1) * size] = factor
        hook = attention_output(blocks(model)[layer]).register_forward_pre_hook(
            lambda _, args, gate=gate: (args[0] * gate,)
        )
        losses.append(loss_of(model, tokens, start).item())
        hook.remove()
    return (losses[0] - losses[1]) / (2 * step)


@torch.no_grad()
def test_gradient_equals_the_finite_difference_of_a_head_mask(model, examples, batches_of, monkeypatch):
    # Llama's norm rounds to float32 whatever the model's type, which would drown the differences.
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda norm, x: norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt(),
    )
    model.double()
    scores = by_unit(head_scores(model, batches_of(2)), "gradient")
    model.eval()
    layers = shape_of(model.config.to_dict()).layers
    expected = {
        (layer, head): sum(abs(slope(model, layer, head, *example)) for example in examples) / len(examples)
        for layer, sizes in enumerate(layers)
        for head in range(sizes.query_heads)
    }
    assert scores == pytest.approx(expected, rel=1e-6, abs=1e-8)


@torch.no_grad()
def test_activation_equals_a_loop_over_examples_and_heads(model, examples, batches_of):
    scores = by_unit(head_scores(model, batches_of(2)), "activation")
    model.eval()
    outputs = {}
    for layer, block in enumerate(blocks(model)):
        attention_output(block).register_forward_pre_hook(
            lambda _, args, layer=layer: outputs.setdefault(layer, []).append(args[0][0])
        )
    for tokens, _ in examples:
        model(input_ids=tokens[None])
    for layer, sizes in enumerate(shape_of(model.config.to_dict()).layers):
        for head in range(sizes.query_heads):
            channels = range(head * sizes.head_dim, (head + 1) * sizes.head_dim)
            squares = [x[:, c].abs().mean().item() ** 2 for x in outputs[layer] for c in channels]
            assert scores.pop((layer, head)) == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    assert not scores


def test_a_group_has_the_sum_of_its_heads(model, batches_of):
    rows = head_scores(model, batches_of(3))
    for metric in ("gradient", "activation"):
        heads = by_unit(rows, metric)
        expected = {}
        for layer, sizes in enumerate(shape_of(model.config.to_dict()).layers):
            share = sizes.query_heads // sizes.kv_heads
            for head in range(sizes.query_heads):
                unit = (layer, head // share)
                expected[unit] = expected.get(unit, 0) + heads[layer, head]
        assert by_unit(rows, metric, "kv_group") == pytest.approx(expected)


def test_neither_batches_nor_padding_change_them(model, batches_of):
    singly = head_scores(model, batches_of(1))
    together = head_scores(model, batches_of(5, width=14))
    for unit in ("head", "kv_group"):
        for metric in ("gradient", "activation"):
            expected = pytest.approx(by_unit(singly, metric, unit), rel=1e-4, abs=1e-6)
            assert by_unit(together, metric, unit) == expected


def test_the_model_stays_as_it_was(model, batches_of):
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    others = [p for p in model.parameters() if p is not frozen]
    logits = []
    model.lm_head.register_forward_hook(lambda _, args, output: logits.append(output.shape))
    with torch.no_grad():
        head_scores(model, batches_of(5))
    assert logits == [(19, 30)], "logits are computed at the 19 supervised positions only"
    assert model.training
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in others)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_scored_is_named(model, batches_of):
    with pytest.raises(CopraError, match="empty"):
        head_scores(model, [])
    batches = list(batches_of(2))
    batches[1]["labels"][1] = -100
    with pytest.raises(CopraError, match="example 3"):
        head_scores(model, batches)
    assert all(p.requires_grad for p in model.parameters())
