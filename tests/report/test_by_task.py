"""Accuracy on each task: the table, against its evaluations one by one, and what the figure draws of it."""

import math

import numpy
import pandas
import pytest
from matplotlib.colors import same_color

from copra.evaluation.statistics import wilson_interval
from copra.report.by_task import by_task_figure
from copra.report.formats import for_people
from copra.report.style import KINDS
from copra.report.tables import accuracy_by_task, accuracy_vs_flops
from copra.utils.errors import CopraError

DENSE_COT, PRUNED, ALONE = "llama+cot", "llama+cot+drop-1", "gpt2+cot"
NODES = {
    DENSE_COT: ["llama@0+cot", "llama@1+cot"],
    PRUNED: ["llama@0+cot+drop-1", "llama@1+cot+drop-1"],
    ALONE: ["gpt2+cot@0"],
}
QUESTIONS = {"": 60, "svamp/": 40, "gsm-hard/": 20}
TASKS = ["gsm8k", "svamp", "gsm-hard"]


def right(task, node):
    """Which questions of a task a model answers."""
    return numpy.random.default_rng([*map(ord, task + node)]).random(QUESTIONS[task]) < 0.6


@pytest.fixture
def by_task(write_evaluation, recipe):
    """The folders of all evaluations, and the settings of the table."""
    folders = {
        task + node: write_evaluation(
            task + node,
            right(task, node),
            flops=100 * (1 + len(task)) // (2 if "drop" in node else 1),
            cut_off=6 if task == "gsm-hard/" else 0,
            seen_in_training=3 if task == "svamp/" else 0,
        )
        for task in QUESTIONS
        for nodes in NODES.values()
        for node in nodes
    }
    asked = [
        recipe(name, pruning="drop-1" if "drop" in name else "dense")
        | {"task": task, "evaluations": [folder + node for node in nodes]}
        for task, folder in zip(TASKS, QUESTIONS, strict=True)
        for name, nodes in NODES.items()
    ]
    return folders, {"reference": DENSE_COT, "asked": asked}


def test_a_row_per_task_recipe_and_seed_with_the_numbers_of_its_evaluation(by_task):
    table = accuracy_by_task(*by_task)
    assert list(table.columns) == [
        *("recipe", "base", "pruning", "method", "task", "seed", "n", "accuracy", "low", "high", "deviation"),
        *("flops", "flops_ratio", "length_limit", "seen_in_training"),
    ]
    assert list(dict.fromkeys(table["task"])) == TASKS
    seeds = ["all", "0", "1", "all", "0", "1", "all"]
    assert list(table["seed"]) == seeds * 3
    for task, folder in zip(TASKS, QUESTIONS, strict=True):
        for name, nodes in NODES.items():
            rows = table[(table["task"] == task) & (table["recipe"] == name)].set_index("seed")
            answers = numpy.stack([right(folder, node) for node in nodes])
            assert rows.loc["all", "accuracy"] == pytest.approx(answers.mean())
            n = QUESTIONS[folder]
            interval = wilson_interval(answers.mean(axis=0).sum(), n)
            assert (rows.loc["all", "low"], rows.loc["all", "high"]) == pytest.approx(interval)
            assert rows.loc["all", "n"] == n
            if len(nodes) > 1:
                assert rows.loc["all", "deviation"] == pytest.approx(answers.mean(axis=1).std(ddof=1))
                assert list(rows["accuracy"])[1:] == pytest.approx(answers.mean(axis=1))
            else:
                assert math.isnan(rows.loc["all", "deviation"])


def test_flops_are_compared_with_the_reference_on_the_same_task(by_task):
    folders, settings = by_task
    table = accuracy_by_task(folders, settings)
    whole = table[table["seed"] == "all"].set_index(["task", "recipe"])
    for task, folder in zip(TASKS, QUESTIONS, strict=True):
        assert whole.loc[(task, DENSE_COT), "flops"] == pytest.approx(100 * (1 + len(folder)))
        assert whole.loc[(task, DENSE_COT), "flops_ratio"] == 1
        assert whole.loc[(task, PRUNED), "flops_ratio"] == pytest.approx(0.5, abs=0.01)
    # The reference was not asked a task that is another recipe's own.
    asked = [row for row in settings["asked"] if (row["task"], row["recipe"]) != ("svamp", DENSE_COT)]
    table = accuracy_by_task(folders, {**settings, "asked": asked})
    assert table.loc[table["task"] == "svamp", "flops_ratio"].isna().all()
    assert accuracy_by_task(folders, {"asked": asked})["flops_ratio"].isna().all()


def test_the_own_task_has_the_numbers_of_accuracy_against_flops(by_task, recipe):
    folders, settings = by_task
    recipes = [recipe(name, *nodes) for name, nodes in NODES.items()]
    of_flops = accuracy_vs_flops(folders, None, {"recipes": recipes, "reference": DENSE_COT})
    own = accuracy_by_task(folders, settings).iloc[: len(of_flops)]
    for column in ("recipe", "seed", "n", "accuracy", "low", "high", "flops", "flops_ratio", "length_limit"):
        assert list(own[column]) == list(of_flops[column]), column


def test_people_read_what_was_cut_off_and_left_out(by_task):
    table = accuracy_by_task(*by_task)
    assert set(table.loc[table["task"] == "svamp", "seen_in_training"]) == {3}
    assert set(table.loc[table["task"] == "gsm-hard", "length_limit"]) == {0.3}
    page = for_people(table)
    assert list(page["Task"].unique()) == TASKS
    assert {"Trained on, left out", "Cut off at the limit (%)", "FLOPs ratio"} <= set(page)
    assert "Trained on, left out" not in for_people(table[table["task"] == "gsm8k"])


def test_an_evaluation_that_is_missing_is_named(by_task):
    folders, settings = by_task
    del folders["svamp/gpt2+cot@0"]
    with pytest.raises(CopraError, match=r"svamp/gpt2\+cot@0: has no evaluation"):
        accuracy_by_task(folders, settings)


def test_the_figure_has_a_panel_per_task_and_a_row_per_recipe(by_task):
    table = accuracy_by_task(*by_task)
    figure = by_task_figure(table, {"cot": "cot"})
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == TASKS
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names == [name.replace("+", " + ") for name in NODES]
    for axes, task in zip(panels, TASKS, strict=True):
        rows = table[table["task"] == task].reset_index(drop=True)
        for place, name in enumerate(NODES):
            drawn = [line for line in axes.lines if list(line.get_ydata()) == [place]]
            of_recipe = rows[rows["recipe"] == name]
            points = sorted(float(line.get_xdata()[0]) for line in drawn)
            assert points == pytest.approx(sorted(100 * of_recipe["accuracy"]))
            mean = next(line for line in drawn if line.get_markerfacecolor() != "none")
            whole = of_recipe[of_recipe["seed"] == "all"].iloc[0]
            assert mean.get_xdata()[0] == pytest.approx(100 * whole["accuracy"])
            assert same_color(mean.get_color(), KINDS["cot"][0])
        spans = [path for bars in axes.collections for path in bars.get_paths()]
        ends = [(path.vertices[:, 0].min() / 100, path.vertices[:, 0].max() / 100) for path in spans]
        whole = rows[rows["seed"] == "all"]
        expected = list(zip(whole["low"], whole["high"], strict=True))
        assert numpy.array(ends) == pytest.approx(numpy.array(expected))


def test_many_tasks_fill_several_rows_and_a_recipe_may_lack_one(by_task):
    table = accuracy_by_task(*by_task)
    more = [table.assign(task=f"task {number}") for number in range(6)]
    more[0] = more[0][more[0]["recipe"] != ALONE]
    figure = by_task_figure(pandas.concat(more, ignore_index=True), {"cot": "cot"})
    assert len([axes for axes in figure.axes if axes.axison]) == 6
    assert len(figure.axes) == 8
