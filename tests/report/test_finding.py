"""The finding, branch by branch; intervals from scipy, which computes them in its own way."""

import numpy
import pytest
from recipes import recipe, table
from scipy import stats

from copra.report.finding import finding

GAINS = {"drop-2": [0.80, 0.84, 0.88], "width-50": [0.61, 0.60, 0.59]}
"""Accuracies of Coconut; its control has 0.6 at every seed."""


def pair(cut, own, control="pause-as-thought", other=0.6, **changes):
    """The recipes of Coconut and a control at one cut."""
    others = [other] * len(own) if isinstance(own, list) else other
    return [recipe("coconut", cut, own, **changes), recipe(control, cut, others, **changes)]


def found(*rows):
    """The finding of some recipes beside the dense model."""
    return finding(table(recipe("more-cot", accuracy=0.9), *rows))


def interval(accuracies):
    """The mean and the t interval of differences from 0.6, as they are written."""
    gains = 100 * (numpy.array(accuracies) - 0.6)
    low, high = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
    return f"{gains.mean():+.1f}", f"{low:+.1f} to {high:+.1f}"


def test_a_gain_whose_interval_excludes_zero_is_stated_and_any_other_is_not_shown():
    mean, reach = interval(GAINS["drop-2"])
    _, around_zero = interval(GAINS["width-50"])
    rows = [each for cut, own in GAINS.items() for each in pair(cut, own)]
    assert found(*rows) == (
        f"Compared with pause as thought, latents add {mean} points (95% interval {reach}) with 2 of 4 "
        "layers; a gain of latents is not established with half the width (+0.0 points, 95% interval "
        f"{around_zero})"
    )


def test_a_second_gain_of_the_same_verdict_is_short():
    mean, reach = interval(GAINS["drop-2"])
    rows = [each for cut in ("drop-2", "width-50") for each in pair(cut, GAINS["drop-2"])]
    assert found(*rows).endswith(
        f"latents add {mean} points (95% interval {reach}) with 2 of 4 layers, "
        f"{mean} ({reach}) with half the width"
    )
    rows = [each for cut in ("drop-2", "width-50") for each in pair(cut, GAINS["width-50"])]
    assert "a gain of latents is not established with 2 of 4 layers" in found(*rows)
    assert ", nor with half the width (" in found(*rows)


def test_a_loss_is_stated_with_its_sign():
    mean, reach = interval([0.50, 0.51, 0.52])
    assert found(*pair("drop-2", [0.50, 0.51, 0.52])) == (
        f"Compared with pause as thought, latents change accuracy by {mean} points (95% interval {reach}) "
        "with 2 of 4 layers"
    )


def test_seeds_are_compared_in_pairs():
    """Both vary a lot from seed to seed, and by the same."""
    seeds = [0.3, 0.5, 0.7]
    rows = [recipe("coconut", "drop-2", [0.1 + each for each in seeds])]
    rows += [recipe("pause-as-thought", "drop-2", seeds)]
    assert "latents add +10.0 points (95% interval +10.0 to +10.0)" in found(*rows)


def test_one_seed_makes_no_claim():
    rows = [*pair("drop-2", 0.9), *pair("width-50", 0.5)]
    assert found(*rows) == (
        "One seed, no claim: compared with pause as thought, latents differ by +30.0 points with 2 of 4 "
        "layers, -10.0 with half the width"
    )


def test_no_cot_is_the_control_where_there_is_no_other():
    rows = [*pair("drop-2", 0.9), *pair("width-50", 0.5, "no-cot"), recipe("no-cot", "drop-2", 0.1)]
    assert found(*rows) == (
        "One seed, no claim: compared with pause as thought, latents differ by +30.0 points with 2 of 4 "
        "layers; compared with no-CoT, latents differ by -10.0 points with half the width"
    )


def test_the_cut_nearest_to_half_is_compared_whatever_its_gain():
    rows = [*pair("drop-1", 0.99), *pair("drop-2", 0.61), *pair("drop-3", 0.99), *pair("width-75", 0.7)]
    assert found(*rows).endswith(
        "latents differ by +1.0 points with 2 of 4 layers, +10.0 with 75% of the width"
    )


@pytest.mark.parametrize(
    ("cut", "place"),
    [("groups-half", "half the KV groups"), ("thin", "half the neurons"), ("drop-3", "1 of 4 layers")],
)
def test_a_cut_is_named_by_what_is_left(cut, place):
    assert found(*pair(cut, 0.7)).endswith(f"with {place}")


def test_controls_share_the_base_and_the_order_of_steps():
    other_order = recipe("pause-as-thought", "drop-2", 0.6, order="after")
    other_base = recipe("pause-as-thought", "drop-2", 0.6, base="other")
    assert found(recipe("coconut", "drop-2", 0.9), other_order, other_base) == ""


@pytest.mark.parametrize(
    "rows",
    [
        [recipe("coconut"), recipe("pause-as-thought")],
        [recipe("coconut", "drop-2")],
        [recipe("no-cot", "drop-2"), recipe("pause-as-thought", "drop-2")],
        pair("both", 0.9),
    ],
    ids=["dense models", "no control", "no latents", "both kinds of cut at once"],
)
def test_without_a_pair_at_a_cut_there_is_no_finding(rows):
    assert found(*rows) == ""
