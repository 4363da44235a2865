"""The uncertainty of an accuracy, and of the difference between two accuracies on the same questions.

Two recipes that were trained with several seeds can be compared in two ways, and each has its own test:

- *these checkpoints*: would these trained models differ on other questions of this kind? Questions are
  random, models are fixed. `checkpoints_test` and the interval of `paired_bootstrap`.
- *this recipe*: would models differ that were trained again? Trainings and questions are random.
  `recipe_difference`: a t test and its interval. It needs two seeds, since one training gives no variance.

The first is the easier claim: two trainings of one recipe differ by points, and with enough questions every
such difference is significant. A statement about a method needs the second.

A contrast of several recipes has one value per seed: `mean_t_test` takes these values as the sample, and
`two_level_bootstrap` seeds and questions.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from copra.utils.errors import CopraError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import ArrayLike


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a proportion (Wilson 1927; Newcombe 1998, method 3).

    `correct` of `n` questions are right; it may be a mean over several runs, hence not whole. Both bounds
    are within [0, 1].

    Raises:
        CopraError: `correct` and `n` do not make a proportion.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n < 1 or not 0 <= correct <= n:
        raise CopraError(f"{correct} of {n} questions right is no proportion: check the evaluation.")
    low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    # At 0 and at n the bound is exact, which rounding in the formula misses.
    return 0.0 if correct == 0 else low, 1.0 if correct == n else high


def proportion(correct: int, n: int) -> dict[str, int | float]:
    """Return n, correct, accuracy and its 95% Wilson interval (low, high)."""
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high}


def mcnemar_exact(correct_a: "ArrayLike", correct_b: "ArrayLike") -> float:
    """Return the two-sided p-value of McNemar's exact test that two models are equally accurate.

    Item i of both is True if the model got question i right. Under the hypothesis each question that only
    one of them got right is a fair coin (McNemar 1947). 1.0 if there is no such question.

    Raises:
        CopraError: the two are not of the same length.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    a, b = _paired(correct_a, correct_b, bool)
    table = [[(a & b).sum(), (a & ~b).sum()], [(b & ~a).sum(), (~a & ~b).sum()]]
    return float(mcnemar(table, exact=True).pvalue)


def sign_flip_exact(correct_a: "ArrayLike", correct_b: "ArrayLike") -> float:
    """Return the exact two-sided p-value of the sign-flip test that two groups of models are equally good.

    Row s of `correct_a` [S_a, n] and of `correct_b` [S_b, n] is True where seed s got a question right. A
    question's difference is that of the two shares of seeds that got it right. Under the hypothesis each
    difference might as well have the other sign (Fisher 1935, section 21); the p-value is the share of all
    2^n choices of signs whose sum is at least as far from 0. With one seed each it is McNemar's exact test.

    Raises:
        CopraError: the two are not on the same number of questions.
    """
    import numpy

    a, b = _groups(correct_a, correct_b)
    # In units of one over the least common multiple of the numbers of seeds, differences are whole.
    unit = math.lcm(len(a), len(b))
    differences = a.sum(axis=0) * (unit // len(a)) - b.sum(axis=0) * (unit // len(b))
    sizes = numpy.abs(differences[differences != 0]).astype(int)
    # chances[k] is the probability that the differences with a positive sign sum to k. The total of positive
    # and negative ones is fixed, so one tail of this distribution gives both.
    chances = numpy.ones(1)
    for size in sizes:
        longer = numpy.zeros(len(chances) + size)
        longer[: len(chances)] = chances
        longer[size:] += chances
        chances = longer / 2
    less = (sizes.sum() - abs(int(differences.sum()))) // 2
    return min(1.0, 2 * float(chances[: less + 1].sum()))


def checkpoints_test(correct_a: "ArrayLike", correct_b: "ArrayLike") -> float:
    """Return the p-value that these models, [S_a, n] and [S_b, n], are equally accurate on other questions.

    McNemar's exact test for one seed each, and the sign-flip test, its generalization, for several.

    Raises:
        CopraError: the two are not on the same number of questions.
    """
    a, b = _groups(correct_a, correct_b)
    return mcnemar_exact(a[0], b[0]) if len(a) == len(b) == 1 else sign_flip_exact(a, b)


def recipe_difference(
    correct_a: "ArrayLike",
    correct_b: "ArrayLike",
    *,
    paired: bool,
    fixed_a: bool = False,
    fixed_b: bool = False,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Return (low, high, p) of accuracy(a) - accuracy(b) over other trainings and other questions.

    Row s of `correct_a` [S_a, n] is True where seed s got a question right. With `paired`, seed s of both
    shares a training, and the differences by seed are the random sample. A recipe without randomness
    (`fixed_a`, `fixed_b`) has one row, which every other training would repeat. (nan, nan, nan) if a recipe
    with randomness has a single row: then the variance over trainings is unknown.

    The variance of the difference is the sum of two parts: that of trainings, s^2 / S of the seeds' means
    (of the paired differences or of each recipe), and that of questions which the recipes answer
    differently, which no number of seeds averages out. It is at least the variance from questions alone. The
    test is Student's t with Satterthwaite's degrees of freedom (Satterthwaite 1946): the paired t test or
    Welch's if questions add nothing. This is the analysis of several readers who read the same cases
    (Obuchowski and Rockette 1995; Hillis 2014, readers nested in tests). The interval excludes 0 if p is
    below 1 - `confidence`. (A bootstrap of seeds and questions rejected equal recipes in 8% of simulated runs
    with 3 seeds whose trainings vary by 3 points, and in none where they do not vary.)

    Raises:
        CopraError: the two are not on the same number of questions, or not on as many seeds where `paired`.
    """
    import numpy
    from scipy.special import stdtr, stdtrit

    a, b = _groups(correct_a, correct_b)
    if paired and len(a) != len(b):
        raise CopraError(
            f"{len(a)} and {len(b)} seeds cannot be compared in pairs: train both with the same."
        )
    difference = float(a.mean() - b.mean())
    if (len(a) == 1 and not fixed_a) or (len(b) == 1 and not fixed_b):
        return math.nan, math.nan, math.nan
    n = a.shape[1]
    by_question = float(numpy.var(a.mean(axis=0) - b.mean(axis=0), ddof=1)) / n if n > 1 else 0.0
    trainings = chance = spread = 0.0
    for drawn in [a - b] if paired else [a, b]:
        if len(drawn) == 1:
            continue
        part = float(drawn.mean(axis=1).var(ddof=1)) / len(drawn)
        trainings += part
        spread += part**2 / (len(drawn) - 1)
        chance += _chance(drawn) / n
    # The seeds' means already include chance within a question.
    variance = max(trainings + max(by_question - chance, 0.0), by_question)
    if not variance:
        return difference, difference, float(difference == 0)
    error, freedom = math.sqrt(variance), variance**2 / spread if spread else math.inf
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return difference - reach, difference + reach, 2 * float(stdtr(freedom, -abs(difference) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's step-down method (Holm 1979).

    All that are below a level are significant at that level together, whatever their dependence. NaN means
    no test and stays NaN. (statsmodels has the same, with a whole collection of garbage in each call.)
    """
    import numpy

    adjusted = numpy.array(p_values, dtype=float)
    tested = numpy.flatnonzero(~numpy.isnan(adjusted))
    order = tested[numpy.argsort(adjusted[tested], kind="stable")]
    steps = adjusted[order] * numpy.arange(len(order), 0, -1)
    adjusted[order] = numpy.minimum(numpy.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _chance(correct: "numpy.ndarray") -> float:
    """Return the variance over questions of the mean over seeds [S, n] that more seeds would remove.

    It is the variance between seeds at one question, minus that of their means, over the number of seeds.
    """
    mean_variance = float(correct.var(axis=1, ddof=1).mean())
    return (mean_variance - float(correct.mean(axis=0).var(ddof=1))) / (len(correct) - 1)


def paired_bootstrap(
    correct_a: "ArrayLike",
    correct_b: "ArrayLike",
    seed: int = 0,
    resamples: int = 10000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of accuracy(a) - accuracy(b), questions resampled in pairs.

    Item i of both is question i: right or wrong, or the share of seeds that got it right. The interval
    (low, high) is Efron's percentile interval (Efron 1979).

    Raises:
        CopraError: the two are empty or not of the same length.
    """
    import numpy

    a, b = _paired(correct_a, correct_b, float)
    if not len(a):
        raise CopraError("No question to compare two models on: the evaluation is empty.")
    # Drawing n questions with replacement is a multinomial draw over the few distinct differences.
    values, counts = numpy.unique(a - b, return_counts=True)
    draws = numpy.random.default_rng(seed).multinomial(len(a), counts / len(a), size=resamples)
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(draws @ values / len(a), [tail, 1 - tail])
    return float(low), float(high)


def mean_t_test(values: "ArrayLike", confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (low, high, p) of the mean of values, one per seed: Student's t interval and t test against 0.

    (nan, nan, nan) for one value, whose variance is not known. Equal values have an interval without width.
    """
    import numpy
    from scipy.special import stdtr, stdtrit

    sample = numpy.asarray(values, dtype=float)
    if len(sample) < 2:
        return math.nan, math.nan, math.nan
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    if not error:
        return mean, mean, float(mean == 0)
    reach = float(stdtrit(len(sample) - 1, (1 + confidence) / 2)) * error
    return mean - reach, mean + reach, 2 * float(stdtr(len(sample) - 1, -abs(mean) / error))


def two_level_bootstrap(
    differences: "ArrayLike", seed: int = 0, resamples: int = 10000, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of differences [S, n] over seeds and questions.

    Each resample draws S seeds and n questions with replacement, and averages over all pairs of these: all
    seeds answer the same questions, so the questions are drawn once for all of them (the pigeonhole bootstrap
    of crossed random effects, Owen 2007). (nan, nan) with one seed. With few seeds the interval is
    too narrow: 3 have 10 different resamples.

    Raises:
        CopraError: there is no question.
    """
    import numpy

    sample = numpy.asarray(differences, dtype=float)
    if not sample.size:
        raise CopraError("No question to compare models on: the evaluation is empty.")
    seeds, n = sample.shape
    if seeds < 2:
        return math.nan, math.nan
    # Drawing n questions with replacement is a multinomial draw over the few distinct columns.
    columns, counts = numpy.unique(sample, axis=1, return_counts=True)
    rng = numpy.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, numpy.full(seeds, 1 / seeds), size=resamples)
    of_questions = rng.multinomial(n, counts / n, size=resamples)
    means = ((of_seeds @ columns) * of_questions).sum(axis=1) / (seeds * n)
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _groups(correct_a: "ArrayLike", correct_b: "ArrayLike") -> "tuple[numpy.ndarray, numpy.ndarray]":
    """Return both as float arrays [S, n] on the same n questions."""
    import numpy

    a, b = (numpy.atleast_2d(numpy.asarray(correct, dtype=float)) for correct in (correct_a, correct_b))
    _paired(a[0], b[0], float)
    return a, b


def _paired(
    correct_a: "ArrayLike", correct_b: "ArrayLike", kind: type[bool | float]
) -> "tuple[numpy.ndarray, numpy.ndarray]":
    import numpy

    a, b = (numpy.asarray(correct, dtype=kind) for correct in (correct_a, correct_b))
    if a.shape != b.shape:
        raise CopraError(
            f"{len(a)} and {len(b)} questions cannot be compared in pairs: evaluate both models on the "
            "same questions."
        )
    return a, b
