import pytest
import torch
from plain import activations, by_unit, sizes_of

from copra.models.anatomy import attention_output, blocks
from copra.pruning.scoring.passes import pass_scores


def outputs_of(model, calibration):
    """For each layer the outputs of the heads in every example, [N, H, D]."""
    with torch.no_grad():
        found = [activations(model, sample, calibration.decoding)[0] for sample in calibration.samples]
    return [
        [example[layer].unflatten(-1, (-1, sizes.head_dim)) for example in found]
        for layer, sizes in enumerate(sizes_of(model))
    ]


def test_activation_equals_a_loop_over_examples_and_channels(model, calibration, no_parts):
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    expected = {}
    for layer, examples in enumerate(outputs_of(model.eval(), calibration)):
        for head in range(examples[0].shape[1]):
            channels = range(examples[0].shape[2])
            squares = [x[:, head, c].abs().mean().item() ** 2 for x in examples for c in channels]
            expected[layer, head] = sum(squares) ** 0.5
    assert by_unit(rows, "head", "activation") == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_contribution_equals_what_the_projection_makes_of_one_head_alone(model, calibration, no_parts):
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    expected = {}
    for layer, examples in enumerate(outputs_of(model.eval(), calibration)):
        projection = attention_output(blocks(model)[layer])
        tokens = torch.cat(examples)
        bias = projection(torch.zeros_like(tokens.flatten(1)))
        for head in range(tokens.shape[1]):
            alone = torch.zeros_like(tokens)
            alone[:, head] = tokens[:, head]
            expected[layer, head] = (projection(alone.flatten(1)) - bias).norm(dim=1).mean().item()
    assert by_unit(rows, "head", "contribution") == pytest.approx(expected, rel=1e-9)
