import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from copra.schema.metrics import COMPARABLE_ACROSS_UNITS, metrics_of
from copra.schema.pruning import Budget, Prune
from copra.utils.errors import CopraError


def choose(legal, total, ratio=lambda number: 1 - number / 20, **budget):
    return Budget(**budget).choose(legal, total, lambda measure, number: ratio(number), "layers")


@pytest.mark.parametrize("values", [{}, {"count": 1, "flops": 0.5}])
def test_exactly_one_sensible_budget(values):
    with pytest.raises(ValidationError):
        Budget(**values)


def test_a_count_is_met_or_refused_with_its_neighbours():
    assert choose([0, 4, 8], 12, count=4) == 4
    with pytest.raises(CopraError, match=r"nearest legal counts are 4 and 8, the largest is 8"):
        choose([0, 4, 8], 12, count=6)
    with pytest.raises(CopraError, match=r"nearest legal counts are 4, the largest is 8"):
        choose([0, 4, 8], 12, count=1)
    with pytest.raises(CopraError, match=r"nearest legal counts are 8, the largest is 8"):
        choose([0, 4, 8], 12, count=12)


@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [(0.25, 16, 4), (0.25, 10, 2), (0.26, 10, 3), (0.07, 50, 3), (0.96, 16, 15)],
)
def test_a_fraction_goes_to_the_nearest_number_and_in_a_tie_to_the_smaller(fraction, total, expected):
    assert choose(range(total), total, fraction=fraction) == expected


def test_a_fraction_that_is_too_large_is_refused_with_what_is_possible():
    assert choose([0, 4, 8], 16, fraction=0.6) == 8
    with pytest.raises(CopraError, match=r"At most 8 can: give a fraction up to 0\.500"):
        choose([0, 4, 8], 16, fraction=0.7)


@pytest.mark.parametrize(("fraction", "legal"), [(0.01, range(16)), (0.25, [0, 8]), (0.1, [0, 4, 8])])
def test_a_fraction_that_removes_nothing_is_refused_with_the_least_that_does(fraction, legal):
    message = r"0\.\d+ of 16 layers is nearest to removing nothing.*: give (0\.\d+), or leave this step out"
    with pytest.raises(CopraError, match=message) as error:
        choose(legal, 16, fraction=fraction)
    told = float(re.search(message, str(error.value))[1])
    assert choose(legal, 16, fraction=told) == legal[1]


@pytest.mark.parametrize("measure", ["flops", "parameters"])
def test_a_target_that_removes_nothing_is_refused_with_the_least_that_does(measure):
    """One layer of sixteen is 4.9% of a Llama 3.2 1B's FLOPs: 0.98 of them is nearer to all 16."""
    ratio = lambda number: 1 - 0.049 * number  # noqa: E731
    with pytest.raises(CopraError, match=r"removing nothing.*removes 1 layers and leaves 0\.9510: give that"):
        choose(range(16), 16, ratio, **{measure: 0.98})
    assert choose(range(16), 16, ratio, **{measure: 0.951}) == 1


@pytest.mark.parametrize(
    ("budget", "number", "missed", "words"),
    [
        ({"count": 4}, 4, 0, None),
        (
            {"fraction": 0.5},
            30,
            -1 / 3,
            r"0\.5 of 90 layers: the nearest .* removes 30, 33% less than",
        ),
        ({"fraction": 0.25}, 30, 1 / 3, "33% more than asked"),
        ({"fraction": 0.34}, 30, -0.0196, None),
        (
            {"flops": 0.9},
            1,
            -0.51,
            r"0\.9 of .* FLOPs: .* 1 layers and leaves 0\.9510, 51% less than",
        ),
        ({"parameters": 0.9}, 2, -0.02, None),
    ],
)
def test_a_cut_far_from_its_budget_is_warned_of(budget, number, missed, words):
    """Far is more than a twentieth of what was to go, which need not be a twentieth of the model."""
    arguments = (number, 90, lambda measure, number: 1 - 0.049 * number)
    assert Budget(**budget).missed(*arguments) == pytest.approx(missed, abs=1e-3)
    warning = Budget(**budget).warning(*arguments, "layers")
    assert warning is None if words is None else re.search(words, warning)


def test_what_was_to_go_counts_from_before_the_step():
    """Of 0.8 that are left, 0.2 are to go, and 0.15 go."""
    assert Budget(flops=0.6).missed(3, 9, lambda measure, n: 0.8 - 0.05 * n) == pytest.approx(-0.25)


@given(st.integers(1, 999), st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True))
def test_a_flops_target_goes_to_the_nearest_ratio(thousandths, removable):
    target, legal = thousandths / 1000, [0, *sorted(removable)]
    ratios = {number: 1 - number / 50 for number in legal}
    lowest, step = ratios[legal[-1]], ratios[legal[-2]] - ratios[legal[-1]]
    if target < lowest - step / 2:
        with pytest.raises(CopraError, match=re.escape(f"{lowest:.4f} are left")):
            choose(legal, 50, ratios.get, flops=target)
    elif 1 - target <= abs(ratios[legal[1]] - target):
        with pytest.raises(CopraError, match="removing nothing"):
            choose(legal, 50, ratios.get, flops=target)
    else:
        number = choose(legal, 50, ratios.get, flops=target)
        assert abs(ratios[number] - target) == min(abs(ratio - target) for ratio in ratios.values())


def test_a_flops_target_above_the_present_cost_is_refused():
    with pytest.raises(CopraError, match=r"has 0\.7000 of the dense model's FLOPs before this step"):
        choose([0, 1, 2], 3, lambda number: 0.7 - number / 10, flops=0.8)


def test_nothing_to_remove_is_refused():
    with pytest.raises(CopraError, match="none of the 3 layers"):
        choose([0], 3, fraction=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "activation"}, "'activation' does not score layers; take one of cosine, angular"),
        ({"unit": "kv_groups"}, "'cosine' does not score kv_groups; take one of gradient"),
        ({"unit": "neurons", "metric": "gates"}, "'gates' does not score neurons"),
        ({"unit": []}, "is empty"),
        ({"unit": ["layers", "layers"], "metric": "taylor"}, "names a kind twice"),
        (
            {"unit": ["kv_groups", "heads"], "metric": "activation"},
            "scale; .* by taylor, magnitude, random",
        ),
        ({"unit": ["layers", "neurons"], "metric": "gradient"}, "no common scale"),
        ({"unit": ["layers", "neurons"], "metric": "taylor"}, "cannot be counted together"),
        ({"normalize": True}, "not for layers themselves"),
    ],
)
def test_illegal_combinations_are_explained(changes, message):
    settings = {"kind": "prune", "unit": "layers", "metric": "cosine", "budget": {"count": 1}, **changes}
    with pytest.raises(ValidationError, match=message):
        Prune(**settings)


@pytest.mark.parametrize(
    ("metric", "scope", "given", "done"),
    [
        ("activation", "global", None, True),
        ("contribution", "global", None, True),
        ("gradient", "global", None, False),
        ("activation", "uniform", None, False),
        ("activation", "global", False, False),
        ("gradient", "uniform", True, True),
    ],
)
def test_the_settings_say_whether_scores_are_normalized(metric, scope, given, done):
    settings = {"kind": "prune", "unit": "heads", "metric": metric, "scope": scope, "budget": {"count": 4}}
    prune = Prune(**settings, **({} if given is None else {"normalize": given}))
    assert prune.canonical()["normalize"] is done
    assert Prune(**prune.canonical()) == prune


@pytest.mark.parametrize(
    ("unit", "metric", "scoring"),
    [
        ("layers", "cosine", "passes"),
        ("layers", "deepest", None),
        ("kv_groups", "random", None),
        ("layers", "greedy_loss", "layers.greedy_loss"),
        ("heads", "gates", "heads.gates"),
        (["layers", "neurons"], "taylor", "passes"),
    ],
)
def test_which_scoring_run_a_step_needs(unit, metric, scoring):
    budget = {"flops": 0.8}
    assert Prune(kind="prune", unit=unit, metric=metric, budget=budget).scoring == scoring


def test_every_metric_has_one_home():
    for kind in ("layers", "kv_groups", "heads", "neurons"):
        assert len(set(metrics_of(kind))) == len(metrics_of(kind))
        assert set(COMPARABLE_ACROSS_UNITS) <= set(metrics_of(kind))
