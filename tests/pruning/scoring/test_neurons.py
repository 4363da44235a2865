import pytest
import torch
from plain import activations, by_unit

from copra.pruning.scoring.passes import pass_scores


def test_activation_equals_a_loop_over_examples_and_neurons(model, calibration, no_parts):
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    model.eval()
    with torch.no_grad():
        examples = [activations(model, sample, calibration.decoding)[1] for sample in calibration.samples]
    expected = {}
    for layer in range(3):
        for neuron in range(examples[0][layer].shape[1]):
            means = [example[layer][:, neuron].abs().mean().item() for example in examples]
            expected[layer, neuron] = sum(mean**2 for mean in means) ** 0.5
    assert by_unit(rows, "neuron", "activation") == pytest.approx(expected, rel=1e-9)
