"""copra compare: compare the answers of two models, or of all seeds of two recipes, on the same questions."""

import math
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from copra.commands.experiment import workflow_of
from copra.commands.models import add_config
from copra.experiment.workflow import Workflow
from copra.report.comparisons import accuracy_over_seeds, compare, correct_by_seed
from copra.report.evaluations import Evaluation, read_evaluation
from copra.report.formats import p_value, with_interval
from copra.utils.errors import CopraError
from copra.utils.files import METRICS, read_parquet
from copra.utils.problems import hint
from copra.utils.quantities import amount
from copra.utils.terminal import table

WIDTH = 78
"""Number of characters in a line of a question."""


@dataclass(frozen=True)
class Side:
    """One of the two: its name, its nodes, their evaluations, and their seconds per answer (NaN: unknown)."""

    name: str
    nodes: list[str]
    members: list[Evaluation]
    latencies: list[float]

    @property
    def right(self) -> pandas.Series:
        """The share of seeds that answer each question right."""
        shares = [member.correct for member in self.members]
        return pandas.concat(shares, axis=1).mean(axis=1)


def arguments(parser: ArgumentParser) -> None:
    kinds = "a recipe (all its seeds), a model, or the folder of an evaluation; TASK/NAME for another task"
    parser.add_argument("a", help=kinds)
    parser.add_argument("b", help=kinds)
    add_config(parser)
    parser.add_argument(
        "--rows", type=int, default=3, help="questions to show that only one answers right (default: 3 each)"
    )


def run(options: Namespace) -> None:
    workflow = workflow_of(options.config) if all(file.is_file() for file in options.config) else None
    a, b = (_side(name, workflow) for name in (options.a, options.b))
    if options.a == options.b:
        raise CopraError(f"{options.a}: is both; name two models")
    difference = compare(a.nodes, a.members, b.nodes, b.members)
    print("\n".join([*_costs(a, b), "", *_differences(difference), "", *_questions(a, b, options.rows)]))


def _side(name: str, workflow: Workflow | None) -> Side:
    """Return the evaluations that a name stands for.

    Raises:
        CopraError: nothing has this name, or it is not evaluated yet.
    """
    if (Path(name) / METRICS).is_file():
        member = read_evaluation(Path(name))
        return Side(name, [str(member.metrics["node"])], [member], [math.nan])
    if workflow is None:
        raise CopraError(
            f"{name}: no folder of an evaluation, and no config that could have a recipe of this name. Name "
            "the folder, or the experiment's config with --config."
        )
    task, _, recipe = name.rpartition("/")
    recipes = {end.recipe: list(end.nodes) for end in workflow.tree.recipes}
    names = {**{node: [node] for node in workflow.tree.nodes}, **recipes}
    if recipe not in names:
        raise CopraError(f"{name}: no recipe or model of {', '.join(workflow.files)}{hint(recipe, names)}")
    nodes = names[recipe]
    folders = [Path(workflow.folder) / "evaluations" / task / node for node in nodes]
    if absent := [folder for folder in folders if not (folder / METRICS).is_file()]:
        raise CopraError(f"{name}: is not evaluated yet: {absent[0]} is missing. Run snakemake")
    seconds = {} if task else _seconds(Path(workflow.folder) / "latency.parquet")
    return Side(
        name, nodes, [read_evaluation(each) for each in folders], [seconds.get(n, math.nan) for n in nodes]
    )


def _seconds(file: Path) -> dict[str, float]:
    """Return the seconds per answer at batch 1 of each model that was timed."""
    if not file.is_file():
        return {}
    timed = read_parquet(file)
    timed = timed[(timed["batch"] == 1) & (timed["length"] == "natural") & (timed["prompt"] == "whole")]
    return dict(zip(timed["node"], timed["seconds_per_answer"], strict=True))


def _costs(a: Side, b: Side) -> list[str]:
    """Return the lines of a table with a row per quantity."""

    def mean(column: str) -> Callable[[Side], float]:
        return lambda side: float(numpy.mean([member.mean(column) for member in side.members]))

    def metric(name: str) -> Callable[[Side], float]:
        return lambda side: float(numpy.mean([member.metrics[name] for member in side.members]))

    quantities: list[tuple[str, Callable[[Side], float], Callable[[float], str]]] = [
        ("FLOPs per answer", mean("flops"), amount),
        ("tokens written", mean("n_generated"), lambda value: f"{value:.1f}"),
        ("latents", mean("n_latent"), lambda value: f"{value:g}"),
        ("sequential depth", mean("depth"), lambda value: f"{value:.1f}"),
        ("parameters", metric("parameters"), amount),
        ("checkpoint bytes", metric("checkpoint_bytes"), amount),
        (
            "ms per answer",
            lambda side: 1000 * float(pandas.Series(side.latencies).mean()),
            lambda ms: f"{ms:.1f}",
        ),
    ]
    rows = [["accuracy (%)", _accuracy(a), _accuracy(b), ""]]
    for name, value, form in quantities:
        first, second = value(a), value(b)
        if first == first and second == second and (first or second):
            rows.append([name, form(first), form(second), f"{second / first:.2f}" if first else ""])
    lines = table(["", "first", "second", "ratio"], rows, ["left", "right", "right", "right"]).splitlines()
    return [f"first:  {a.name}", f"second: {b.name}", "", *lines]


def _accuracy(side: Side) -> str:
    found = accuracy_over_seeds(correct_by_seed(side.members))
    return with_interval(found["accuracy"], found["low"], found["high"])


def _differences(found: dict[str, float]) -> Iterator[str]:
    """Yield the difference in accuracy with the answers to its two questions."""
    yield f"first minus second: {100 * found['difference']:+.1f} points"
    for question, words in (("checkpoints", "these models, other questions"), ("recipe", "trained again")):
        low, high, p = (found[f"{question}_{name}"] for name in ("low", "high", "p"))
        if low == low:
            yield f"  {words}: 95% interval [{100 * low:+.1f}, {100 * high:+.1f}], p {p_value(p)}"
        else:
            yield f"  {words}: unknown, since a recipe has one seed"


def _questions(a: Side, b: Side, most: int) -> Iterator[str]:
    """Yield how many questions each answers (most seeds of it), and some that only one of them does."""
    first, second = a.right > 0.5, b.right > 0.5
    only_a, only_b = first & ~second, second & ~first
    yield (
        f"of {len(first):,} questions both are right on {(first & second).sum():,}, only the first on "
        f"{only_a.sum():,}, only the second on {only_b.sum():,}, neither on {(~first & ~second).sum():,}"
    )
    for words, chosen in (("only the first is right", only_a), ("only the second is right", only_b)):
        shown = list(chosen.index[chosen])[: max(most, 0)]
        if shown:
            yield f"\n{words}:"
        for key in shown:
            yield from _one(key, (a, b))


def _one(key: tuple[str, int], sides: Sequence[Side]) -> Iterator[str]:
    row = sides[0].members[0].predictions.loc[key]
    yield textwrap.fill(str(row["question"]), WIDTH, initial_indent="  ", subsequent_indent="  ", max_lines=4)
    given = [side.members[0].predictions.loc[key, "extracted"] for side in sides]
    answers = [
        "no answer" if pandas.isna(each) else textwrap.shorten(str(each), 30, placeholder=" ...")
        for each in given
    ]
    yield f"    gold: {row['gold']}; first: {answers[0]}; second: {answers[1]}"
