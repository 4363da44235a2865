"""The table of accuracy with latents of other sources than the model itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas

from copra.report.comparisons import (
    ALL,
    NOT_COMPARED,
    accuracy_over_seeds,
    compare_correct,
    is_fixed,
    seed_of,
    with_holm,
)
from copra.utils.files import read_parquet


def latent_sources(swapped: Sequence[Mapping[str, Any]], evaluations: Path) -> pandas.DataFrame:
    """Return one row per recipe and source of latents (seed "all"), and one per seed if there are several.

    `swapped` lists recipes with their nodes, one per seed; `evaluations` holds one folder per node with
    latents_from.parquet. `minus_own` is the accuracy minus that of the same models with their own latents, on
    the same questions, with the intervals and p-values of `copra.report.comparisons`. `changed` is the share
    of answers that differ from those with own latents; `other_gold` is the share of answers that equal the
    gold answer of the question whose latents were fed, among the questions that got latents of a question
    with another gold answer.
    """
    rows = []
    for recipe in swapped:
        nodes = list(dict.fromkeys(recipe["nodes"]))
        found = {node: _evaluated(evaluations / node / "latents_from.parquet") for node in nodes}
        for seed, chosen in _groups(nodes):
            for source in found[nodes[0]].index:
                members = [found[node].loc[source] for node in chosen]
                rows.append(
                    {"recipe": recipe["recipe"], "seed": seed, "source": source}
                    | {"precision": ", ".join(sorted({each["precision"] for each in members}))}
                    | accuracy_over_seeds(_correct(members))
                    | {"changed": float(numpy.mean([each["changed"] / each["n"] for each in members]))}
                    | {"other_gold": float(numpy.mean([each["other_gold"] for each in members]))}
                    | _minus_own(chosen, members, [found[node].loc["own"] for node in chosen], seed)
                )
    return with_holm(pandas.DataFrame(rows))


def _evaluated(file: Path) -> pandas.DataFrame:
    """Return the evaluations of a node by source."""
    table = read_parquet(file).set_index("source")
    return table.assign(other_gold=table["other_gold"].astype(float))


def _groups(nodes: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield (seed, nodes) of each row of one recipe."""
    yield ALL, nodes
    if len(nodes) > 1:
        yield from [(seed_of(node), [node]) for node in nodes]


def _correct(members: Sequence[pandas.Series]) -> "numpy.ndarray":
    """Return the correctness of each question by seed, [S, n]."""
    return numpy.stack([each["is_correct"] for each in members]).astype(float)


def _minus_own(
    nodes: Sequence[str], members: Sequence[pandas.Series], own: Sequence[pandas.Series], seed: str
) -> dict[str, float]:
    """Return the comparison of a source with `own`, the same models on the same questions."""
    values = dict(NOT_COMPARED)
    if members[0].name != "own":
        fixed = is_fixed(nodes)
        values = compare_correct(
            _correct(members), _correct(own), paired=True, fixed_a=fixed, fixed_b=fixed, anew=seed == ALL
        )
    return {"minus_own": values.pop("difference"), **values}
