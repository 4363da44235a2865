"""How often the tests of differences reject equal recipes, and unequal ones: simulated runs, seeded.

Questions differ in difficulty, which the reference and the recipe share. A training moves the accuracy of its
model by a draw of so many points (its deviation), on questions of medium difficulty most.
"""

import numpy
import pytest

from copra.evaluation.statistics import (
    checkpoints_test,
    mcnemar_exact,
    mean_t_test,
    paired_bootstrap,
    recipe_difference,
    two_level_bootstrap,
)

pytestmark = pytest.mark.slow

RUNS = 1000
"""Simulated runs: a rate of 5% is measured to 0.7 points (one standard error)."""
HIGHEST = 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5


class Simulation:
    """Draws the answers of a recipe and its reference, [S, n] each, a run after the other."""

    def __init__(self, seeds, questions, deviation, *, better=0.0, reference=None, shared=0.0, own=0.0):
        self.generator = numpy.random.default_rng([seeds, questions, round(100 * deviation)])
        self.seeds, self.questions, self.better, self.shared, self.own = seeds, questions, better, shared, own
        self.deviations = (deviation, deviation if reference is None else reference)

    def draw(self):
        """The answers of one run: accuracies in points are `better` apart; seeds have a part in common that
        moves both by `shared` points, and each recipe questions `own` that it finds harder or easier."""
        difficulty = self.generator.beta(0.6, 0.5, self.questions)
        common = self.generator.normal(0, self.shared, self.seeds) if self.shared else 0
        return tuple(
            self._answers(difficulty, better + common + self.generator.normal(0, deviation, self.seeds))
            for better, deviation in zip((self.better, 0), self.deviations, strict=True)
        )

    def _answers(self, difficulty, points):
        reach = difficulty * (1 - difficulty)
        level = difficulty + points[:, None] / 100 * reach / reach.mean()
        if self.own:
            level = level + self.own * reach * self.generator.choice([-1, 1], self.questions)
        draws = self.generator.random((self.seeds, self.questions), dtype=numpy.float32)
        return draws < level

    def rejected(self, test, runs=RUNS):
        """The part of runs whose p-value is below 5%."""
        return numpy.mean([test(*self.draw()) < 0.05 for _ in range(runs)])


def unpaired(a, b):
    return recipe_difference(a, b, paired=False)[2]


def paired(a, b):
    return recipe_difference(a, b, paired=True)[2]


@pytest.mark.parametrize("deviation", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_recipes_are_told_apart_in_5_percent_of_runs(seeds, deviation):
    """Where trainings do not vary in less: with so few seeds that cannot be known."""
    rate = Simulation(seeds, 1319, deviation).rejected(unpaired)
    assert (0.02 if deviation else 0.002) < rate < HIGHEST


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_pairs_of_seeds_hold_the_size_too(seeds, shared):
    """Whether what they have in common matters or not."""
    rate = Simulation(seeds, 1000, 1.5, shared=shared).rejected(paired)
    assert 0.02 < rate < HIGHEST


def test_what_seeds_have_in_common_makes_the_unpaired_test_careful():
    assert Simulation(5, 1000, 1.5, shared=3.0).rejected(unpaired) < 0.02


@pytest.mark.parametrize("seeds", [3, 5])
def test_trainings_of_one_recipe_may_vary_more(seeds):
    assert Simulation(seeds, 1000, 3.0, reference=0.0).rejected(unpaired) < HIGHEST


@pytest.mark.parametrize("test", [unpaired, paired])
def test_recipes_may_be_good_at_other_questions(test):
    """No number of seeds averages that out: seeds alone would be sure of a difference that is the
    questions'."""
    simulation = Simulation(5, 1000, 0.0, own=2.0)
    assert simulation.rejected(test) < HIGHEST


def test_power_grows_with_the_number_of_seeds():
    """5 points where trainings vary by 1.5: measured 0.61 and 0.97, in pairs 0.47 and 0.90."""
    for test, least in ((unpaired, (0.5, 0.9)), (paired, (0.35, 0.8))):
        rates = [Simulation(seeds, 1319, 1.5, better=5).rejected(test, 400) for seeds in (3, 5)]
        assert rates[1] > rates[0] + 0.1
        assert all(rate > bound for rate, bound in zip(rates, least, strict=True))


def test_pairs_see_what_seeds_have_in_common():
    """Models of a seed that start from one checkpoint, which moves both by 3 points."""
    simulations = [Simulation(5, 1319, 1.0, better=4, shared=3.0) for _ in range(2)]
    rates = [each.rejected(test, 400) for each, test in zip(simulations, (paired, unpaired), strict=True)]
    assert rates[0] > rates[1] + 0.2


class Checkpoints(Simulation):
    """Models that are given: their trainings have moved them by nothing on the mean."""

    def _answers(self, difficulty, points):
        return super()._answers(difficulty, points - points.mean() + self.better * (points.mean() > 2))


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_equal_checkpoints_are_told_apart_in_5_percent_of_draws_of_questions(seeds):
    assert 0.02 < Checkpoints(seeds, 1000, 1.5).rejected(checkpoints_test, 600) < 0.05 + 3 * 0.0089


def test_power_on_checkpoints_grows_with_the_number_of_seeds():
    """3 points where trainings do not vary; the median of the seeds' McNemar tests lost power with each."""

    def median(a, b):
        return numpy.median([mcnemar_exact(one, other) for one, other in zip(a, b, strict=True)])

    rates = [Simulation(n, 1000, 0, better=3).rejected(checkpoints_test, 300) for n in (1, 3, 5)]
    assert rates[0] + 0.1 < rates[1] < rates[2]
    medians = [Simulation(n, 1000, 0, better=3).rejected(median, 150) for n in (1, 5)]
    assert medians[1] < rates[2] - 0.3


def test_equal_recipes_have_unequal_checkpoints():
    """So the first question is no answer to the second."""
    assert Simulation(3, 1000, 3.0).rejected(checkpoints_test, 300) > 0.2


@pytest.mark.parametrize(("seeds", "spread", "least"), [(3, 0.02, 0.9), (5, 0.04, 0.92), (20, 0.04, 0.92)])
def test_intervals_of_contrasts_cover_the_truth(seeds, spread, least):
    """A contrast of 0.1 with an effect of each seed, of each question and of each pair of these.

    The t interval of the seeds' values covers what trainings give on these questions on the mean, and the
    bootstrap what they give on all.
    """
    generator, covered = numpy.random.default_rng(seeds), numpy.zeros(2)
    for _ in range(300):
        questions = generator.normal(0, 0.3, 100)
        sample = 0.1 + questions + generator.normal(0, spread, (seeds, 1))
        sample = sample + generator.normal(0, 0.4, (seeds, 100))
        low, high, _ = mean_t_test(sample.mean(axis=1))
        wide_low, wide_high = two_level_bootstrap(sample, resamples=500)
        covered += [low <= 0.1 + questions.mean() <= high, wide_low <= 0.1 <= wide_high]
    assert 0.91 < covered[0] / 300 < 0.985
    assert least < covered[1] / 300 <= 0.995


def test_the_bootstrap_of_a_contrast_is_too_narrow_where_few_seeds_vary_much():
    """By 10 points: with 3 seeds it covers the truth in some 80% of runs."""
    generator, covered = numpy.random.default_rng(6), 0
    for _ in range(300):
        sample = 0.1 + generator.normal(0, 0.1, (3, 1)) + generator.normal(0, 0.4, (3, 100))
        low, high = two_level_bootstrap(sample, resamples=500)
        covered += low <= 0.1 <= high
    assert 0.65 < covered / 300 < 0.9


def test_intervals_and_tests_agree():
    """A recipe's always; the bootstrap's but for a few at the border."""
    simulation, agreed = Simulation(3, 1000, 1.5, better=3), []
    for _ in range(200):
        a, b = simulation.draw()
        low, high, p = recipe_difference(a, b, paired=False)
        assert (low > 0 or high < 0) == (p < 0.05)
        low, high = paired_bootstrap(a.mean(axis=0), b.mean(axis=0), resamples=2000)
        agreed.append((low > 0 or high < 0) == (checkpoints_test(a, b) < 0.05))
    assert numpy.mean(agreed) > 0.95
