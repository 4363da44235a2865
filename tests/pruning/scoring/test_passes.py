"""The gradients of all units against masks, and what holds for all scores together."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from plain import by_unit, loss, ones, sizes_of
from torch.nn.functional import pad

from copra.models.networks import Projection
from copra.pruning.scoring.passes import pass_scores
from copra.schema.metrics import BACKWARD_METRICS, OF_BLOCKS, SCORED_AS
from copra.utils.errors import CopraError

THREE = ("gradient", "gradient_token", "gradient_batch")


def scores_of(model, calibration, size=2):
    return pass_scores(model, torch.nn.ModuleDict(), calibration.batches(size), calibration.decoding)


def test_gradients_equal_those_of_masks_for_each_token(model, calibration):
    rows = scores_of(model, calibration)
    model.eval()
    expected = {(kind, metric): {} for kind in ("layer", "head", "neuron") for metric in THREE}
    slopes = []
    for sample in calibration.samples:
        masks = ones(model, sample)
        flat = [mask.requires_grad_() for layers in masks.values() for mask in layers]
        found = iter(torch.autograd.grad(loss(model, sample, calibration.decoding, masks), flat))
        slopes.append({kind: [next(found) for _ in layers] for kind, layers in masks.items()})
    for kind in ("layer", "head", "neuron"):
        for layer in range(3):
            tables = [slope[kind][layer] for slope in slopes]
            for index in range(tables[0].shape[1]):
                each = [table[:, index] for table in tables]
                unit = (layer, layer if kind == "layer" else index)
                expected[kind, "gradient"][unit] = sum(abs(x.sum().item()) for x in each) / 5
                expected[kind, "gradient_token"][unit] = sum(x.abs().sum().item() for x in each) / 5
                expected[kind, "gradient_batch"][unit] = abs(sum(x.sum().item() for x in each)) / 5
    for (kind, metric), values in expected.items():
        assert by_unit(rows, kind, metric) == pytest.approx(values, rel=1e-7, abs=1e-12), (kind, metric)


@pytest.mark.slow
@torch.no_grad()
def test_gradients_equal_finite_differences_of_a_mask_on_one_unit(model, calibration):
    step = 1e-5
    del calibration.samples[3:]
    rows = scores_of(model, calibration)
    model.eval()
    # All layers and heads, and one neuron a layer.
    units = [(kind, layer, layer) for kind in ("layer", "neuron") for layer in range(3)]
    for layer, sizes in enumerate(sizes_of(model)):
        units += [("head", layer, head) for head in range(sizes.query_heads)]
    for kind, layer, index in units:
        slopes = []
        for sample in calibration.samples:
            losses = []
            for change in (step, -step):
                masks = ones(model, sample)[kind]
                masks[layer][:, 0 if kind == "layer" else index] += change
                losses.append(loss(model, sample, calibration.decoding, {kind: masks}).item())
            slopes.append((losses[0] - losses[1]) / (2 * step))
        expected = {"gradient": sum(map(abs, slopes)) / 3, "gradient_batch": abs(sum(slopes)) / 3}
        for metric, value in expected.items():
            found = by_unit(rows, kind, metric)[layer, index]
            assert found == pytest.approx(value, rel=1e-5, abs=1e-8), (kind, layer, index, metric)


def test_every_unit_has_every_metric_of_its_kind_once(model, calibration):
    found = Counter((row["unit"], row["metric"]) for row in scores_of(model, calibration))
    sizes = sizes_of(model)
    units = {
        "layers": len(sizes),
        "kv_groups": sum(layer.kv_heads for layer in sizes),
        "heads": sum(layer.query_heads for layer in sizes),
        "neurons": sum(layer.ffn for layer in sizes),
    }
    expected = {("block", metric): 3 + 2 + 1 for metric in OF_BLOCKS}
    for kind, metrics in BACKWARD_METRICS.items():
        for metric in {*metrics, *THREE} - set(OF_BLOCKS):
            expected[SCORED_AS[kind], metric] = units[kind]
    assert found == expected


def test_a_group_has_the_sum_of_its_heads(model, calibration):
    rows = scores_of(model, calibration)
    for metric in (*THREE, "activation", "contribution", "taylor", "magnitude"):
        heads, expected = by_unit(rows, "head", metric), {}
        for layer, sizes in enumerate(sizes_of(model)):
            size = sizes.query_heads // sizes.kv_heads
            for group in range(sizes.kv_heads):
                members = range(group * size, (group + 1) * size)
                expected[layer, group] = sum(heads[layer, head] for head in members)
        assert by_unit(rows, "kv_group", metric) == pytest.approx(expected), metric


def test_neither_batches_nor_padding_change_them(model, calibration, no_parts):
    def wider(batch):
        """With three columns more of padding on the right."""
        changed = {"tokens": 7, "mask": 0, "positions": 1, "labels": -100, "latent": False}
        wide = {name: pad(getattr(batch, name), (0, 3), value=value) for name, value in changed.items()}
        return replace(batch, **wide)

    singly = scores_of(model, calibration, size=1)
    batches = map(wider, calibration.batches(3))
    together = pass_scores(model, no_parts, batches, calibration.decoding)
    assert len(singly) == len(together)
    for one, other in zip(singly, together, strict=True):
        score = one.pop("score")
        assert other.pop("score") == pytest.approx(score, rel=1e-6, abs=1e-9), one
        assert one == other


def test_latents_change_the_scores(model, with_latents):
    """Else the comparisons above would not show that gradients go through latents."""
    rows = scores_of(model, with_latents)
    with_latents.decoding = replace(with_latents.decoding, thought="embedding")
    others = scores_of(model, with_latents)
    for unit, metric in (("layer", "gradient"), ("head", "taylor"), ("neuron", "activation")):
        ours, theirs = by_unit(rows, unit, metric), by_unit(others, unit, metric)
        assert max(abs(ours[key] / theirs[key] - 1) for key in ours) > 0.01


def test_the_model_stays_as_it_was(model, calibration):
    extra_modules = torch.nn.ModuleDict({"projection": Projection(model).double()})
    both = torch.nn.ModuleDict({"model": model, "extra_modules": extra_modules}).train()
    eval_part = next(m for name, m in model.named_modules() if name.endswith("mlp")).eval()
    frozen, kept = list(model.parameters())[3:5]
    frozen.requires_grad_(False)
    kept.grad = gradient = torch.ones_like(kept)
    weights = {name: p.detach().clone() for name, p in both.named_parameters()}
    decoding = calibration.decoding and replace(calibration.decoding, latent_input="projected")
    logits = []
    hook = model.lm_head.register_forward_hook(lambda _, args, output: logits.append(output.shape))
    with torch.no_grad():
        pass_scores(model, extra_modules, calibration.batches(5), decoding)
    hook.remove()
    supervised = sum(label != -100 for sample in calibration.samples for label in sample.labels)
    assert logits == [(supervised, 30)], "logits are computed at supervised positions only"
    inside_eval = set(eval_part.modules())
    assert all(module.training == (module not in inside_eval) for module in both.modules())
    assert [p for p in both.parameters() if not p.requires_grad] == [frozen]
    assert [p for p in both.parameters() if p.grad is not None] == [kept]
    assert kept.grad is gradient
    assert (gradient == 1).all()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in both.modules())
    assert all(torch.equal(p, weights[name]) for name, p in both.named_parameters())


def test_projected_latents_go_through_their_projection(model, with_latents):
    torch.manual_seed(1)
    extra_modules = torch.nn.ModuleDict({"projection": Projection(model).double()})
    decoding = replace(with_latents.decoding, latent_input="projected")
    rows = pass_scores(model, extra_modules, with_latents.batches(5), decoding)
    model.eval()
    expected = {}
    for sample in with_latents.samples:
        masks = {"head": [mask.requires_grad_() for mask in ones(model, sample)["head"]]}
        value = loss(model, sample, decoding, masks, feed=extra_modules["projection"])
        for layer, slopes in enumerate(torch.autograd.grad(value, masks["head"])):
            for head, slope in enumerate(slopes.sum(0).tolist()):
                expected[layer, head] = expected.get((layer, head), 0) + abs(slope) / 5
    assert by_unit(rows, "head", "gradient") == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_weights_in_bfloat16_are_scored_with_more_digits(model, calibration):
    model.bfloat16()
    rough, exact = scores_of(model, calibration), scores_of(model.double(), calibration)
    for unit in ("layer", "head", "neuron"):
        expected = by_unit(exact, unit, "magnitude")
        assert by_unit(rough, unit, "magnitude") == pytest.approx(expected, rel=1e-9)
    found, expected = (by_unit(rows, "head", "contribution") for rows in (rough, exact))
    # Above the first layer the model itself has but few digits.
    assert found[0, 0] == pytest.approx(expected[0, 0], rel=0.05)


def test_what_cannot_be_scored_is_named(model, calibration, no_parts):
    with pytest.raises(CopraError, match="empty"):
        pass_scores(model, no_parts, [], calibration.decoding)
    batches = list(calibration.batches(2))
    batches[1].labels[1] = -100
    with pytest.raises(CopraError, match="example 3 "):
        pass_scores(model, no_parts, batches, calibration.decoding)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
