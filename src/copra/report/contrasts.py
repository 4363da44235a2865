"""The table of contrasts: sums and differences of the accuracies of recipes, with statistics over seeds.

The value of a contrast is computed for each seed: the models of a seed often share ancestors, whose quality
then cancels out. The t interval and the p-value are those of the seeds' values, which are the sample: they
say what other trainings would give on these questions. The bootstrap resamples the questions too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas

from copra.evaluation.statistics import holm, mean_t_test, two_level_bootstrap
from copra.report.comparisons import ALL, correct_by_seed, seed_of
from copra.report.evaluations import Evaluation, check_same_questions, evaluation_of
from copra.schema.contrast import NamedContrast
from copra.utils.errors import CopraError

NUMBERS = ("t_low", "t_high", "t_p", "bootstrap_low", "bootstrap_high")


def contrasts(
    evaluations: Mapping[str, Path],
    chosen: Sequence[NamedContrast],
    nodes: Mapping[str, Sequence[str]],
    primary: str | None = None,
) -> pandas.DataFrame:
    """Return one row per contrast (seed "all"), and one per seed below it if there are several.

    `evaluations` maps each node to the folder of its evaluation, `nodes` each recipe to its last nodes, one
    per seed. `value` is in accuracy (a share), its mean over seeds where the seed is "all"; `seeds` is their
    number, `n` that of the questions. `t_low`, `t_high` and `t_p` are Student's 95% interval and p-value over
    seeds, `bootstrap_*` the interval over seeds and questions: NaN with one seed, and in rows of one.
    `t_p_holm` is adjusted for the number of contrasts by Holm's method, but for the contrast `primary`, which
    was named before anything was measured.

    Raises:
        CopraError: an evaluation is missing, was changed by hand, or holds other questions than the others;
            or recipes have different numbers of seeds.
    """
    loaded = {node: evaluation_of(evaluations, node) for each in nodes.values() for node in each}
    rows: list[dict[str, Any]] = []
    for contrast in chosen:
        differences, seeds = _differences(contrast, nodes, loaded)
        described = {
            "contrast": contrast.name,
            "plus": ", ".join(contrast.plus),
            "minus": ", ".join(contrast.minus),
            "primary": contrast.name == primary,
        }
        values, n = differences.sum(axis=1) / differences.shape[1], differences.shape[1]
        found = (*mean_t_test(values), *two_level_bootstrap(differences))
        numbers = dict(zip(NUMBERS, found, strict=True))
        whole = {"seed": ALL, "seeds": len(values), "n": n, "value": float(values.mean())}
        rows.append(described | whole | numbers)
        if len(values) > 1:
            rows += [
                described
                | {"seed": seed, "seeds": 1, "n": n, "value": float(value)}
                | dict.fromkeys(NUMBERS, math.nan)
                for seed, value in zip(seeds, values, strict=True)
            ]
    table = pandas.DataFrame(rows)
    family = table["t_p"].where(~table["primary"])
    return table.assign(t_p_holm=table["t_p"].where(table["primary"], holm(list(family))))


def _differences(
    contrast: NamedContrast, nodes: Mapping[str, Sequence[str]], loaded: Mapping[str, Evaluation]
) -> tuple["numpy.ndarray", list[str]]:
    """Return the value of a contrast by seed and question, [S, n], and the seeds.

    A recipe without randomness has one model, which stands for every seed.
    """
    seeds = max((nodes[recipe] for recipe in contrast.recipes), key=len)
    first = loaded[seeds[0]]
    total = numpy.zeros((len(seeds), len(first.predictions)))
    for sign, recipes in ((1, contrast.plus), (-1, contrast.minus)):
        for recipe in recipes:
            members = [loaded[node] for node in nodes[recipe]]
            check_same_questions(first, members[0])
            if len(members) not in (1, len(seeds)):
                raise CopraError(
                    f"contrasts.{contrast.name}: {recipe} has {len(members)} seeds and another recipe "
                    f"{len(seeds)}, so they are no pairs. Run snakemake again, with the same seeds for all."
                )
            total += sign * correct_by_seed(members)
    return total, [seed_of(node) for node in seeds]
