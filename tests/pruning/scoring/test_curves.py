"""What a pruning curve hands on to the prune steps behind its points."""

import pytest
from pydantic import ValidationError

from copra.schema.curve import Curve

GROUPS = {"model": "llama+cot", "unit": "kv_groups", "remove": [2], "objectives": ["cot"]}


@pytest.mark.parametrize(
    ("changes", "normalized"),
    [
        ({}, [True, True, False]),
        ({"scope": "uniform"}, [False, False, False]),
        ({"normalize": True}, [True, True, True]),
        ({"normalize": False}, [False, False, False]),
    ],
)
def test_scores_are_normalized_as_in_a_prune_step(changes, normalized):
    """By default those that grow with the residual stream, where layers compete."""
    curve = Curve(**GROUPS, metrics=["activation", "contribution", "taylor"], **changes)
    assert [curve.step(line, 2).normalize for line in curve.lines()] == normalized
    assert curve.canonical()["normalize"] == changes.get("normalize")
    assert curve.canonical()["scope"] == changes.get("scope", "global")


def test_layers_cannot_be_normalized():
    with pytest.raises(ValidationError, match="not for layers themselves"):
        Curve(**{**GROUPS, "unit": "layers"}, metrics=["cosine"], normalize=True)


def test_the_mean_angle_has_one_line_on_objectives_that_read_the_same():
    value = {**GROUPS, "unit": "layers", "objectives": ["cot", "answer", "latent"]}
    curve = Curve(**value, metrics=["angular_mean"])
    assert [line.objective for line in curve.lines()] == ["cot", "latent"]
