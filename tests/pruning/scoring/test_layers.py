import math

import pytest
import torch
from plain import by_unit, residual_stream
from torch.nn.functional import cosine_similarity

from copra.data.batch import collate
from copra.data.sequences import IGNORED, Sample
from copra.pruning.scoring import layers
from copra.pruning.scoring.passes import pass_scores


def angle(one, other):
    return math.acos(cosine_similarity(one, other, dim=-1).item()) / math.pi


def by_hand(model, calibration):
    """Cosine of layers and both angles of blocks, by a loop over examples and tokens."""
    with torch.no_grad():
        streams = [residual_stream(model, sample, calibration.decoding) for sample in calibration.samples]
    # The token before the last label: for these, which have labels to their end, the last but one.
    places = [
        max(place for place, label in enumerate(s.labels) if label != IGNORED) - 1
        for s in calibration.samples
    ]
    cosine, angular, mean = {}, {}, {}
    for layer in range(3):
        tokens = torch.cat([cosine_similarity(x[layer], x[layer + 1], dim=-1) for x in streams])
        cosine[layer, layer] = 1 - tokens.mean().item()
        for length in range(1, 4 - layer):
            ends = [(x[layer], x[layer + length]) for x in streams]
            last = [angle(a[place], b[place]) for (a, b), place in zip(ends, places, strict=True)]
            each = [angle(*pair) for a, b in ends for pair in zip(a, b, strict=True)]
            angular[layer, length] = sum(last) / len(last)
            mean[layer, length] = sum(each) / len(each)
    return cosine, angular, mean


def test_cosine_and_angles_equal_a_loop_over_examples_tokens_and_blocks(
    model, calibration, no_parts, monkeypatch
):
    monkeypatch.setattr(layers, "CHUNK", 4)
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    cosine, angular, mean = by_hand(model.eval(), calibration)
    assert by_unit(rows, "layer", "cosine") == pytest.approx(cosine, rel=1e-9)
    assert by_unit(rows, "block", "angular") == pytest.approx(angular, rel=1e-9)
    assert by_unit(rows, "block", "angular_mean") == pytest.approx(mean, rel=1e-9)


def test_the_end_token_does_not_count_for_angular(model, with_latents, no_parts):
    """No answer ever reads it: whatever stands there, the distances stay."""
    found = []
    for end in (1, 7):
        for sample in with_latents.samples:
            sample.tokens[-1] = end
        rows = pass_scores(model, no_parts, with_latents.batches(5), with_latents.decoding)
        found.append([by_unit(rows, "block", metric) for metric in ("angular", "angular_mean")])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert found[0][1] != pytest.approx(found[1][1], rel=1e-6), "all tokens count for the mean"


def test_angular_looks_at_the_last_token_that_is_asked_for_another(model, no_parts):
    """Of an example whose labels end before its tokens do, in the middle."""
    tokens = [3, 14, 15, 9, 2, 6, 5]
    labels = [IGNORED, IGNORED, IGNORED, 9, 2, IGNORED, IGNORED]
    sample = Sample("a", tokens, labels, len(tokens), 0)
    rows = pass_scores(model, no_parts, [collate([sample], 0)], None)
    with torch.no_grad():
        states = residual_stream(model.eval(), sample, None)
    assert by_unit(rows, "block", "angular")[1, 2] == pytest.approx(angle(states[1][3], states[3][3]))


def test_a_layer_that_does_nothing_scores_zero(model, calibration, no_parts):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".1." in name and any(part in name for part in ("o_proj", "down_proj", "c_proj")):
                parameter.zero_()
    rows = pass_scores(model, no_parts, calibration.batches(2), calibration.decoding)
    for metric in ("cosine", "gradient", "gradient_token", "gradient_batch"):
        assert by_unit(rows, "layer", metric)[1, 1] == pytest.approx(0, abs=1e-12)
        assert by_unit(rows, "layer", metric)[0, 0] > 1e-6
    for metric in ("angular", "angular_mean"):
        angles = by_unit(rows, "block", metric)
        assert angles[1, 1] == pytest.approx(0, abs=1e-7), "an angle near 0 has half the digits"
        assert angles[0, 2] == pytest.approx(angles[0, 1])
