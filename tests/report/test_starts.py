"""The models that last training steps started from, as columns of the table of accuracy against FLOPs."""

import math

import pytest

from copra.report.formats import for_people
from copra.report.starts import healing_steps
from copra.report.tables import accuracy_vs_flops


def trained(steps):
    return {"step": "cot", "method": "cot", "record": {"steps": steps}}


PRUNED = {"step": "drop-2", "plan": "of a pruning", "removed": {"layers": [1]}, "proof": {}}
PROMPT = {"step": "ask", "prompt": {}}


@pytest.mark.parametrize(
    ("lineage", "steps"),
    [
        ([], 0),
        ([trained(500)], 0),
        ([trained(500), PRUNED], 0),
        ([trained(500), PRUNED, trained(30)], 30),
        ([trained(500), PRUNED, trained(30), trained(7)], 37),
        ([trained(500), PRUNED, trained(30), PRUNED, PROMPT, trained(7)], 7),
    ],
)
def test_healing_is_what_was_trained_after_the_last_pruning(lineage, steps):
    assert healing_steps(lineage) == steps


@pytest.fixture
def run(write_evaluation, recipe):
    """Two seeds of a recipe that started from a healed model, one that started from a base, and a prompt."""
    answers = {"l@0+cot": [1, 1, 0, 0], "l@1+cot": [1, 1, 1, 1], "hub+ask": [0, 0, 0, 1]}
    answers |= {"l@0+cot+x": [1, 0, 0, 0], "l@1+cot+x": [1, 1, 1, 0], "hub+x@0": [1, 1, 1, 1]}
    folders = {node: write_evaluation(node, right) for node, right in answers.items()}
    healed = {"recipe": "l+cot", "nodes": ["l@0+cot", "l@1+cot"], "answers": True}
    raw = {"recipe": "hub", "nodes": ["hub"], "answers": False}
    recipes = [
        recipe("l+cot+x", "l@0+cot+x", "l@1+cot+x") | {"start": healed},
        recipe("hub+x", "hub+x@0") | {"start": raw},
        recipe("hub+ask", "hub+ask") | {"start": None},
    ]
    return folders, recipes


@pytest.mark.slow
def test_accuracy_and_healing_of_the_start_are_means_over_seeds(run):
    folders, recipes = run
    healing = {"l@0+cot": 40, "l@1+cot": 80, "hub": 0}
    table = accuracy_vs_flops(folders, None, {"recipes": recipes}, healing)
    assert list(table["seed"]) == ["all", "0", "1", "all", "all"]
    assert list(table["start"].fillna("")) == ["l+cot", "l+cot", "l+cot", "hub", ""]
    assert list(table["start_accuracy"][:3]) == [0.75, 0.5, 1.0]
    assert table["start_accuracy"][3:].isna().all()
    assert list(table["healing_steps"]) == [60, 40, 80, 0, 0]
    view = for_people(table)
    assert list(view["Accuracy at the start (%)"]) == ["75.0", "50.0", "100.0", "-", "-"]
    assert list(view["Started from"])[2:] == ["l+cot", "hub", ""]
    assert list(view["Healing steps"]) == ["60", "40", "80", "0", "0"]


@pytest.mark.slow
def test_a_table_that_is_not_asked_for_starts_has_no_such_columns(run):
    folders, recipes = run
    recipes = [{key: value for key, value in each.items() if key != "start"} for each in recipes]
    table = accuracy_vs_flops(folders, None, {"recipes": recipes})
    assert not [column for column in table if "start" in column or "healing" in column]


@pytest.mark.slow
def test_seeds_above_90_percent_are_counted(write_evaluation, recipe):
    """0.9 is not above itself."""
    right = {"l@0+cot": [1] * 19 + [0], "l@1+cot": [1] * 18 + [0] * 2, "l@2+cot": [1] * 20}
    folders = {node: write_evaluation(node, answers) for node, answers in right.items()}
    table = accuracy_vs_flops(folders, None, {"recipes": [recipe("l+cot", *right)]})
    assert table["share_above_90"].tolist() == pytest.approx([2 / 3, 1, 0, 1])
    assert for_people(table)["Seeds above 90% accuracy (%)"][0] == "66.7"
    single = accuracy_vs_flops(folders, None, {"recipes": [recipe("l+cot", "l@0+cot")]})
    assert math.isclose(single["share_above_90"].item(), 1.0)
    assert "Seeds above 90% accuracy (%)" not in for_people(single)
