"""Comparisons of a recipe with a reference on the same questions: the values in a row of a table.

Each of the two questions of `copra.evaluation.statistics` has its columns: `checkpoints_*` for these trained
models, `recipe_*` for models that would be trained again. Seeds are compared in pairs if the two models of
each seed descend from one model drawn with that seed, since its quality affects both.
"""

import math
import re
from collections.abc import Sequence

import numpy
import pandas

from copra.evaluation.statistics import (
    checkpoints_test,
    holm,
    paired_bootstrap,
    recipe_difference,
    wilson_interval,
)
from copra.report.evaluations import Evaluation, check_same_questions

QUESTIONS = ("checkpoints", "recipe")
NUMBERS = ("low", "high", "p")
NOT_COMPARED = {
    "difference": math.nan,
    **{f"{question}_{name}": math.nan for question in QUESTIONS for name in NUMBERS},
}
"""The values in the row of a reference."""
ALL = "all"
"""The value of the column `seed` in the row of a whole recipe."""


def seed_of(node: str) -> str:
    """Return the seed in a node's name, as in "llama@0+cot"; empty if it has none."""
    found = re.search(r"@([^+]+)", node)
    return found[1] if found else ""


def without_seed(node: str) -> str:
    """Return a node's name without its seed."""
    return re.sub(r"@[^+]+", "", node)


def is_fixed(nodes: Sequence[str]) -> bool:
    """True if training a recipe with these nodes again would give the same model: it has no seed."""
    return len(nodes) == 1 and not seed_of(nodes[0])


def share_seeds(nodes: Sequence[str], others: Sequence[str]) -> bool:
    """True if, for each n, the n-th nodes of both descend from one model that was drawn with their seed."""
    return len(nodes) == len(others) and all(map(_share_draw, nodes, others))


def _share_draw(node: str, other: str) -> bool:
    for step, other_step in zip(node.split("+"), other.split("+"), strict=False):
        if step != other_step:
            return False
        if "@" in step:
            return True
    return False


def correct_by_seed(members: Sequence[Evaluation]) -> "numpy.ndarray":
    """Return the correctness of each question by seed, [S, n]: 1.0 is right.

    Raises:
        CopraError: they were evaluated on different questions.
    """
    for other in members[1:]:
        check_same_questions(members[0], other)
    return numpy.stack([member.correct for member in members])


def accuracy_over_seeds(correct: "numpy.ndarray") -> dict[str, float]:
    """Return the accuracy of one or several seeds, given their correctness [S, n] (`copra.report.tables`)."""
    seeds, n = correct.shape
    low, high = wilson_interval(float(correct.mean(axis=0).sum()), n)
    return {
        "n": n,
        "accuracy": float(correct.mean()),
        "low": low,
        "high": high,
        "deviation": float(numpy.std(correct.mean(axis=1), ddof=1)) if seeds > 1 else math.nan,
    }


def compare(
    nodes: Sequence[str],
    members: Sequence[Evaluation],
    others: Sequence[str],
    reference: Sequence[Evaluation],
    *,
    anew: bool = True,
) -> dict[str, float]:
    """Return the difference in accuracy between `nodes` and `others`, and two 95% intervals and p-values.

    There is one interval and one p-value for each of the two questions. All are NaN without a reference.
    `recipe_*` are NaN if `anew` is false, or if a recipe with randomness has only one seed.

    Raises:
        CopraError: the evaluations are of different questions.
    """
    if not reference:
        return dict(NOT_COMPARED)
    check_same_questions(members[0], reference[0])
    return compare_correct(
        correct_by_seed(members),
        correct_by_seed(reference),
        paired=share_seeds(nodes, others),
        fixed_a=is_fixed(nodes),
        fixed_b=is_fixed(others),
        anew=anew,
    )


def compare_correct(
    correct_a: "numpy.ndarray",
    correct_b: "numpy.ndarray",
    *,
    paired: bool,
    fixed_a: bool,
    fixed_b: bool,
    anew: bool = True,
) -> dict[str, float]:
    """Return accuracy(a) - accuracy(b), and its two 95% intervals and p-values, as `compare` does.

    The arguments are those of `copra.evaluation.statistics.recipe_difference`.
    """
    share_a, share_b = correct_a.mean(axis=0), correct_b.mean(axis=0)
    of_checkpoints = (*paired_bootstrap(share_a, share_b), checkpoints_test(correct_a, correct_b))
    of_recipe = (math.nan,) * 3
    if fixed_a and fixed_b:
        # No randomness: training again would give the same models.
        of_recipe = of_checkpoints
    elif anew:
        of_recipe = recipe_difference(correct_a, correct_b, paired=paired, fixed_a=fixed_a, fixed_b=fixed_b)
    values = {"difference": float(share_a.mean() - share_b.mean())}
    for question, found in zip(QUESTIONS, (of_checkpoints, of_recipe), strict=True):
        values |= {f"{question}_{name}": value for name, value in zip(NUMBERS, found, strict=True)}
    return values


def with_holm(table: pandas.DataFrame, primary: str | None = None) -> pandas.DataFrame:
    """Return the table with p-values adjusted for the number of recipes that it compares, `*_p_holm`.

    The recipe `primary` was named before anything was measured: its p-values are not adjusted, and Holm's
    method runs over the others. Rows of single seeds repeat a comparison and have none.
    """
    adjusted = {}
    for question in QUESTIONS:
        raw = table[f"{question}_p"].where(table["seed"] == ALL)
        family = raw.where(table["recipe"] != primary)
        adjusted[f"{question}_p_holm"] = [
            p if recipe == primary else other
            for recipe, p, other in zip(table["recipe"], raw, holm(list(family)), strict=True)
        ]
    return table.assign(**adjusted)
