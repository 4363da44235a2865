import itertools

import numpy
import pytest
from scipy.stats import binomtest, permutation_test, t, ttest_1samp, ttest_ind, ttest_rel
from statsmodels.stats.multitest import multipletests

from copra.evaluation.statistics import (
    checkpoints_test,
    holm,
    mcnemar_exact,
    mean_t_test,
    paired_bootstrap,
    recipe_difference,
    sign_flip_exact,
    two_level_bootstrap,
    wilson_interval,
)
from copra.utils.errors import CopraError


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


def test_wilson_interval_of_none_and_of_all_ends_exactly():
    assert wilson_interval(0, 1000)[0] == 0
    assert wilson_interval(1319, 1319)[1] == 1


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


def _correct(generator, seeds, n, level=0.5):
    return generator.random((seeds, n)) < level


@pytest.mark.parametrize(("seeds", "others"), [(1, 1), (2, 2), (3, 3), (3, 1), (2, 3)])
def test_sign_flips_match_the_enumeration_of_all_signs(seeds, others):
    for seed in range(5):
        generator = numpy.random.default_rng(seed)
        a, b = _correct(generator, seeds, 11, 0.7), _correct(generator, others, 11)
        differences = a.mean(axis=0) - b.mean(axis=0)
        sums = numpy.array(list(itertools.product((-1, 1), repeat=11))) @ differences
        expected = numpy.mean(abs(sums) >= abs(differences.sum()) - 1e-9)
        assert sign_flip_exact(a, b) == pytest.approx(expected)
        assert sign_flip_exact(b, a) == pytest.approx(expected)


@pytest.mark.slow
def test_sign_flips_match_scipys_random_ones():
    generator = numpy.random.default_rng(1)
    level = generator.random(700)
    a, b = _correct(generator, 5, 700, level + 0.01), _correct(generator, 3, 700, level)
    differences = a.mean(axis=0) - b.mean(axis=0)
    found = permutation_test(
        (differences,),
        numpy.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=numpy.random.default_rng(2),
    )
    assert 0.02 < sign_flip_exact(a, b) < 0.5
    assert sign_flip_exact(a, b) == pytest.approx(found.pvalue, abs=0.015)


def test_sign_flips_of_one_seed_each_are_mcnemars_test():
    generator = numpy.random.default_rng(3)
    a, b = _correct(generator, 1, 400, 0.55), _correct(generator, 1, 400)
    assert sign_flip_exact(a, b) == pytest.approx(mcnemar_exact(a[0], b[0]), rel=1e-9)
    assert checkpoints_test(a, b) == mcnemar_exact(a[0], b[0])
    assert checkpoints_test(a, a) == sign_flip_exact(a, a) == 1.0
    several = _correct(generator, 3, 400)
    assert checkpoints_test(several, b) == sign_flip_exact(several, b)


def _slowly(a, b, paired):
    """(part of trainings, part of questions, what questions alone give, degrees of freedom), all from the
    covariances over questions of each two trainings."""

    def between(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return numpy.mean([numpy.cov(x[i], y[j])[0, 1] for i, j in pairs])

    a, b = a.astype(float), b.astype(float)
    groups = [a - b] if paired else [a, b]
    parts = [numpy.var(group.mean(axis=1), ddof=1) / len(group) for group in groups]
    questions = sum(between(group, group, True) for group in groups)
    questions -= 0 if paired else 2 * between(a, b, False)
    n, trainings = a.shape[1], sum(parts)
    alone = numpy.var(a.mean(axis=0) - b.mean(axis=0), ddof=1) / n
    variance = max(trainings + max(questions / n, 0), alone)
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    return trainings, questions / n, alone, freedom


@pytest.mark.parametrize("paired", [True, False])
def test_a_recipes_interval_matches_the_covariances_of_trainings(paired):
    kinds = set()
    for seed in range(40):
        generator = numpy.random.default_rng(seed)
        level = generator.random(60)
        shifts = generator.normal(0, 0.1, (2, 4, 1)) * (seed % 2)
        own = generator.normal(0, 0.2, (2, 1, 60)) * (seed % 3 == 0)
        a, b = (_correct(generator, 4, 60, level + shift) for shift in shifts + own)
        trainings, questions, alone, freedom = _slowly(a, b, paired)
        kinds.add((questions > 0, trainings + max(questions, 0) > alone))
        error = max(trainings + max(questions, 0), alone) ** 0.5
        difference = a.mean() - b.mean()
        reach = t.ppf(0.975, freedom) * error
        p = 2 * t.sf(abs(difference) / error, freedom)
        expected = (difference - reach, difference + reach, p)
        assert recipe_difference(a, b, paired=paired) == pytest.approx(expected, rel=1e-9)
    # Questions add something or nothing, and what they give alone is the least that holds or not.
    assert len(kinds) == 4


def test_where_questions_add_nothing_it_is_a_t_test_of_the_seeds_means():
    found = {True: 0, False: 0}
    for seed in range(60):
        generator = numpy.random.default_rng(seed)
        a, b = (_correct(generator, 4, 90, 0.5 + generator.normal(0, 0.1, (4, 1))) for _ in range(2))
        for paired, oracle in ((True, ttest_rel), (False, lambda x, y: ttest_ind(x, y, equal_var=False))):
            trainings, questions, alone, _ = _slowly(a, b, paired)
            if questions <= 0 and trainings >= alone:
                found[paired] += 1
                expected = oracle(a.mean(axis=1), b.mean(axis=1)).pvalue
                assert recipe_difference(a, b, paired=paired)[2] == pytest.approx(expected)
    assert min(found.values()) > 5


def test_a_recipe_that_draws_nothing_has_one_row_that_stands_for_all():
    for seed in range(60):
        generator = numpy.random.default_rng(seed)
        a = _correct(generator, 5, 90, 0.5 + generator.normal(0, 0.15, (5, 1)))
        b = numpy.ones((1, 90), bool)
        found = recipe_difference(a, b, paired=False, fixed_b=True)
        low, high, p = recipe_difference(b, a, paired=False, fixed_a=True)
        assert found == pytest.approx((-high, -low, p))
        _, questions, _, _ = _slowly(a, b.repeat(5, axis=0), False)
        if questions <= 0:
            assert found[2] == pytest.approx(ttest_1samp(a.mean(axis=1), 1.0).pvalue)
            return
    raise AssertionError("no draw in which questions add nothing")


def test_one_training_says_nothing_of_others():
    generator = numpy.random.default_rng(4)
    one, several = _correct(generator, 1, 50), _correct(generator, 3, 50)
    for a, b in ((one, one), (one, several), (several, one)):
        assert numpy.isnan(recipe_difference(a, b, paired=False)).all()


def test_recipes_that_never_differ():
    generator = numpy.random.default_rng(5)
    a = _correct(generator, 3, 50)
    assert recipe_difference(a, a, paired=True) == (0, 0, 1)
    right = numpy.ones((3, 50), bool)
    assert recipe_difference(right, ~right, paired=False) == (1, 1, 0)


def test_what_is_no_pair_is_refused():
    a = numpy.ones((3, 4), bool)
    with pytest.raises(CopraError, match="3 and 2 seeds"):
        recipe_difference(a, a[:2], paired=True)
    for test in (sign_flip_exact, checkpoints_test):
        with pytest.raises(CopraError, match="4 and 3 questions"):
            test(a, a[:, :3])


@pytest.mark.slow
def test_holms_correction_by_hand():
    """Four tests: 4 x 0.01, 3 x 0.013 = 0.039 below it, 2 x 0.03, and 0.04, which may not be lower."""
    assert holm([0.03, 0.01, 0.04, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    nan = float("nan")
    assert holm([nan, 0.02, nan, 0.03]) == pytest.approx([nan, 0.04, nan, 0.04], nan_ok=True)
    assert holm([]) == []


def test_holms_correction_is_that_of_statsmodels():
    rng = numpy.random.default_rng(0)
    for number in (1, 2, 9, 40):
        values = numpy.round(rng.random(number) ** 3, 2)  # with ties, zeros and ones
        expected = multipletests(values, method="holm")[1]
        assert holm(list(values)) == pytest.approx(list(expected), abs=1e-15)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_t_test_of_a_mean_is_scipys(seeds, confidence):
    generator = numpy.random.default_rng(seeds)
    for _ in range(20):
        values = generator.normal(0.02, 0.05, seeds)
        oracle = ttest_1samp(values, 0)
        interval = oracle.confidence_interval(confidence)
        expected = (interval.low, interval.high, oracle.pvalue)
        assert mean_t_test(values, confidence) == pytest.approx(expected, rel=1e-9)


def test_one_value_has_no_variance_and_equal_values_have_none_either():
    assert numpy.isnan(mean_t_test([0.3])).all()
    assert mean_t_test([0.25, 0.25, 0.25]) == (0.25, 0.25, 0)
    assert mean_t_test([0.0, 0.0]) == (0, 0, 1)


def test_the_two_level_bootstrap_matches_the_enumeration_of_all_resamples():
    """Of two seeds and three questions, the questions drawn once for both seeds."""
    sample = numpy.array([[1, 0, -1.0], [1, 1, 0]])
    means = [
        sample[list(seeds)][:, list(questions)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for questions in itertools.product(range(3), repeat=3)
    ]
    for confidence in (0.5, 0.8, 0.95):
        tail = (1 - confidence) / 2
        expected = numpy.quantile(means, [tail, 1 - tail], method="inverted_cdf")
        found = two_level_bootstrap(sample, resamples=200_000, confidence=confidence)
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_the_two_level_bootstrap_matches_a_plain_loop():
    generator = numpy.random.default_rng(7)
    sample = (generator.random((4, 150)) < 0.7).astype(float) - (generator.random((4, 150)) < 0.5)
    sample += generator.integers(0, 2, 150)
    means = []
    for _ in range(20_000):
        drawn = sample[generator.integers(0, 4, 4)]
        means.append(drawn[:, generator.integers(0, 150, 150)].mean())
    assert two_level_bootstrap(sample) == pytest.approx(numpy.quantile(means, [0.025, 0.975]), abs=0.006)


def test_the_two_level_bootstrap_depends_on_its_seed_alone():
    sample = _correct(numpy.random.default_rng(8), 3, 40).astype(float)
    assert two_level_bootstrap(sample) == two_level_bootstrap(sample)
    assert two_level_bootstrap(sample) != two_level_bootstrap(sample, seed=1)
    assert numpy.isnan(two_level_bootstrap(sample[:1])).all()
    with pytest.raises(CopraError, match="empty"):
        two_level_bootstrap(numpy.zeros((3, 0)))
