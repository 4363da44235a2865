import itertools

import numpy
import pytest
from scipy.stats import binomtest

from copra.errors import CopraError
from copra.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_the_published_values(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (7, 10), (462, 1319), (1319, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_matches_scipy(correct, n, confidence):
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, n, confidence) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_interval_takes_a_mean_over_seeds():
    low, high = wilson_interval(10.5, 30)
    assert wilson_interval(10, 30)[0] < low < wilson_interval(11, 30)[0]
    assert wilson_interval(10, 30)[1] < high < wilson_interval(11, 30)[1]


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(CopraError, match="no proportion"):
        wilson_interval(correct, n)


def _pairs(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (0, 5), (2, 8), (5, 5), (6, 3), (10, 1)])
def test_mcnemar_matches_the_enumeration_of_all_coin_tosses(only_a, only_b):
    n = only_a + only_b
    heads = [sum(tosses) for tosses in itertools.product((0, 1), repeat=n)]
    extreme = [count for count in heads if abs(count - n / 2) >= abs(only_a - n / 2)]
    a, b = _pairs(7, only_a, only_b, 4)
    assert mcnemar_exact(a, b) == pytest.approx(len(extreme) / len(heads))
    assert mcnemar_exact(b, a) == pytest.approx(mcnemar_exact(a, b))


def test_mcnemar_without_a_discordant_pair_is_one():
    assert mcnemar_exact([True, False], [True, False]) == 1.0


def test_mcnemar_rejects_a_true_hypothesis_rarely():
    random = numpy.random.default_rng(1)
    draws = random.random((2, 400, 200)) < 0.4
    rejected = numpy.mean([mcnemar_exact(a, b) < 0.05 for a, b in zip(*draws, strict=True)])
    assert 0.01 <= rejected <= 0.07


def test_bootstrap_matches_the_enumeration_of_all_resamples():
    a, b = numpy.array([1, 1, 1, 0, 1, 0.0]), numpy.array([0, 1, 0, 1, 0, 0.0])
    means = [(a - b)[list(rows)].mean() for rows in itertools.product(range(6), repeat=6)]
    low, high = numpy.quantile(means, [0.025, 0.975])
    assert paired_bootstrap(a, b, resamples=200_000) == pytest.approx((low, high), abs=1e-9)


def test_bootstrap_matches_resampling_question_by_question():
    random = numpy.random.default_rng(2)
    a, b = random.random(300) < 0.6, random.random(300) < 0.5
    rows = random.integers(0, 300, size=(10_000, 300))
    differences = (a.astype(float) - b)[rows].mean(axis=1)
    assert paired_bootstrap(a, b) == pytest.approx(numpy.quantile(differences, [0.025, 0.975]), abs=0.005)


def test_bootstrap_covers_the_true_difference_as_often_as_it_says():
    random = numpy.random.default_rng(3)
    covered = 0
    for _ in range(300):
        level = random.random(200)
        low, high = paired_bootstrap(level < 0.6, level < random.choice([0.4, 0.6], 200), resamples=1000)
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_bootstrap_depends_on_its_seed_alone():
    a, b = _pairs(20, 9, 4, 10)
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a, a) == (0.0, 0.0)


@pytest.mark.parametrize("test", [mcnemar_exact, paired_bootstrap])
def test_different_lengths_are_refused(test):
    with pytest.raises(CopraError, match="3 and 2 questions"):
        test([1, 0, 1], [1, 0])


def test_bootstrap_refuses_no_questions():
    with pytest.raises(CopraError, match="empty"):
        paired_bootstrap([], [])
