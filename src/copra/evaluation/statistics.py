"""The uncertainty of an accuracy, and of the difference between two accuracies on the same questions."""

import math
from collections.abc import Sequence

from copra.errors import CopraError


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; Newcombe 1998, method 3).

    `correct` of `n` questions are right; it may be a mean over several runs, hence not whole.
    Returns (low, high), both within [0, 1].

    Raises:
        CopraError: `correct` and `n` do not make a proportion.
    """
    from scipy.stats import norm

    if n < 1 or not 0 <= correct <= n:
        raise CopraError(f"{correct} of {n} questions right is no proportion: check the evaluation.")
    z = float(norm.ppf((1 + confidence) / 2))
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and at n the bound is exact, which rounding in the formula would miss by a hair.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def proportion(correct: int, n: int) -> dict[str, int | float]:
    """n, correct, accuracy and its 95% Wilson interval (low, high)."""
    low, high = wilson_interval(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high}


def mcnemar_exact(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar 1947) that two models are equally accurate.

    Row i of both says whether the model got question i right. Under the hypothesis each question that
    only one of them got right is a fair coin. 1.0 where there is no such question.

    Raises:
        CopraError: the two are not of the same length.
    """
    from scipy.stats import binomtest

    a, b = _paired(correct_a, correct_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def paired_bootstrap(
    correct_a: Sequence[float],
    correct_b: Sequence[float],
    seed: int = 0,
    resamples: int = 10000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of accuracy(a) - accuracy(b), questions resampled in pairs.

    Row i of both is question i: right or wrong, or the share of seeds that got it right.
    Returns (low, high) of Efron's percentile interval (Efron 1979).

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


def _paired(correct_a, correct_b, kind: type):
    import numpy

    a, b = numpy.asarray(correct_a, dtype=kind), numpy.asarray(correct_b, dtype=kind)
    if a.shape != b.shape:
        raise CopraError(
            f"{len(a)} and {len(b)} questions cannot be compared in pairs: evaluate both models on the "
            "same questions."
        )
    return a, b
