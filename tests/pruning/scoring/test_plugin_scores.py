"""Scores by a plugin's metric: what it is given against masks, and what it returns."""

import pytest
import torch
from plain import by_unit, loss, ones, sizes_of

from copra.models.anatomy import blocks
from copra.pruning.scoring import plugin_scores as module
from copra.pruning.scoring.plugin_scores import plugin_scores
from copra.schema.metrics import SCORED_AS
from copra.schema.pass_metric import PassMetric
from copra.utils.errors import CopraError
from copra.utils.plugins import Plugin


class Slopes(PassMetric):
    """The mean over examples of the squared derivative for a mask on the unit, of all kinds of unit."""

    units = ("layers", "kv_groups", "heads", "neurons")

    def sums(self, seen):
        assert sum(seen.tokens) == len(seen.inputs) == len(seen.neurons)
        slopes = {
            "layers": ((seen.outputs - seen.inputs) * seen.outputs_gradient).sum(1, keepdim=True),
            "heads": (seen.heads * seen.heads_gradient).unflatten(1, (-1, seen.shape.head_dim)).sum(-1),
            "neurons": seen.neurons * seen.neurons_gradient,
        }
        return {kind: seen.example_sums(each).square().sum(0) for kind, each in slopes.items()}

    def scores(self, seen):
        assert (seen.examples, seen.tokens > 5) == (5, True)
        means = {kind: total / seen.examples for kind, total in seen.sums.items()}
        return means | {"kv_groups": means["heads"].view(seen.shape.kv_heads, -1).sum(1)}


class Weights(PassMetric):
    """The mean of the squared gradient of a layer's weights: nothing is summed in the passes."""

    units = ("layers",)

    def scores(self, seen):
        gradients = [parameter.grad.flatten() for parameter in seen.block.parameters()]
        return {"layers": torch.cat(gradients).square().mean() / seen.examples**2}


class OneTooFew(Weights):
    units = ("neurons",)

    def scores(self, seen):
        return {"neurons": torch.zeros(seen.shape.ffn - 1)}


@pytest.fixture
def scores_of(monkeypatch, model, calibration, no_parts):
    """Scores by a metric, as if a package had it."""

    def scores(metric):
        plugin = Plugin("copra.metrics", "mine", "lab:Mine", "copra-lab", "0.1.0")
        monkeypatch.setattr(module, "METRIC_PLUGINS", {"mine": plugin})
        monkeypatch.setattr(module, "plugin_metrics", lambda: {"mine": metric})
        return plugin_scores("mine", model, no_parts, calibration.batches(2), calibration.decoding)

    return scores


def test_squared_slopes_equal_those_of_masks(model, calibration, scores_of):
    rows = scores_of(Slopes())
    model.eval()
    expected = {kind: {} for kind in ("layer", "head", "neuron")}
    for sample in calibration.samples:
        masks = ones(model, sample)
        flat = [mask.requires_grad_() for layers in masks.values() for mask in layers]
        found = iter(torch.autograd.grad(loss(model, sample, calibration.decoding, masks), flat))
        for kind, layers in masks.items():
            for layer, _ in enumerate(layers):
                for index, slope in enumerate(next(found).sum(0).tolist()):
                    unit = (layer, layer if kind == "layer" else index)
                    expected[kind][unit] = expected[kind].get(unit, 0) + slope**2 / 5
    for kind, values in expected.items():
        assert by_unit(rows, kind, "mine") == pytest.approx(values, rel=1e-7, abs=1e-12), kind
    groups = by_unit(rows, SCORED_AS["kv_groups"], "mine")
    for layer, sizes in enumerate(sizes_of(model)):
        size = sizes.query_heads // sizes.kv_heads
        for group in range(sizes.kv_heads):
            heads = [expected["head"][layer, group * size + head] for head in range(size)]
            assert groups[layer, group] == pytest.approx(sum(heads), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(("model", "calibration"), [("llama", "latent"), ("gpt2", "text")], indirect=True)
def test_a_metric_reads_gradients_of_weights_and_leaves_the_model_as_it_was(model, calibration, scores_of):
    before = {name: (each.requires_grad, each.grad) for name, each in model.named_parameters()}
    found = by_unit(scores_of(Weights()), "layer", "mine")
    assert {name: (each.requires_grad, each.grad) for name, each in model.named_parameters()} == before
    model.eval()
    total = sum(loss(model, sample, calibration.decoding, {}) for sample in calibration.samples) / 5
    for layer, block in enumerate(blocks(model)):
        gradients = torch.autograd.grad(total, list(block.parameters()), retain_graph=True)
        flat = torch.cat([each.flatten() for each in gradients])
        assert found[layer, layer] == pytest.approx(flat.square().mean().item(), rel=1e-7)


@pytest.mark.parametrize(("model", "calibration"), [("llama", "text")], indirect=True)
def test_other_numbers_of_scores_than_units_are_refused(scores_of):
    with pytest.raises(
        CopraError, match=r"copra-lab 0\.1\.0: it gives layer 0 the numbers of scores \{'neurons': "
    ):
        scores_of(OneTooFew())
