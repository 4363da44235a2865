import math

import pytest
import torch
from plain import by_unit, residual_stream
from torch.nn.functional import cosine_similarity

from copra.importance.passes import pass_scores


def by_hand(model, calibration):
    """Cosine of layers and angular of blocks, by a loop over examples."""
    with torch.no_grad():
        streams = [residual_stream(model, sample, calibration.decoding) for sample in calibration.samples]
    cosine, angular = {}, {}
    for layer in range(3):
        tokens = torch.cat([cosine_similarity(x[layer], x[layer + 1], dim=-1) for x in streams])
        cosine[layer, layer] = 1 - tokens.mean().item()
        for length in range(1, 4 - layer):
            last = [cosine_similarity(x[layer][-1], x[layer + length][-1], dim=-1).item() for x in streams]
            angular[layer, length] = sum(math.acos(value) / math.pi for value in last) / len(last)
    return cosine, angular


def test_cosine_and_angular_equal_a_loop_over_examples_and_blocks(model, calibration, no_parts):
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    cosine, angular = by_hand(model.eval(), calibration)
    assert by_unit(rows, "layer", "cosine") == pytest.approx(cosine, rel=1e-9)
    assert by_unit(rows, "block", "angular") == pytest.approx(angular, rel=1e-9)


def test_a_layer_that_does_nothing_scores_zero(model, calibration, no_parts):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".1." in name and any(part in name for part in ("o_proj", "down_proj", "c_proj")):
                parameter.zero_()
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    for metric in ("cosine", "gradient", "gradient_token", "gradient_batch"):
        assert by_unit(rows, "layer", metric)[1, 1] == pytest.approx(0, abs=1e-12)
        assert by_unit(rows, "layer", metric)[0, 0] > 1e-6
    angular = by_unit(rows, "block", "angular")
    assert angular[1, 1] == pytest.approx(0, abs=1e-7), "an angle near 0 has half the digits"
    assert angular[0, 2] == pytest.approx(angular[0, 1])
