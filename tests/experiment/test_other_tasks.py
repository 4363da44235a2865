"""Models that are also asked the questions of other tasks: what the rules get, and what is refused."""

import json

import pytest

from copra.experiment.outputs import figure_files, table_files, table_settings
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from helpers.tiny import DROP, TRAINING, tiny_config

LONGER = {"kind": "word_sums", "train": 1, "valid": 1, "test": 8, "min_steps": 6, "max_steps": 6}
TOLD = {"kind": "rows", "test": "told.csv"}
PLAIN = {"kind": "rows", "train": "all.csv", "validation_share": 0.1, "test_share": 0.1}
CONFIG = tiny_config(
    tasks__longer=LONGER,
    tasks__told=TOLD,
    steps={
        "cot": {"kind": "cot", "training": TRAINING},
        "on-longer": {"kind": "no_cot", "task": "longer", "training": TRAINING},
        "drop": DROP,
        "ask": {"kind": "few_shot"},
    },
    recipes=[["cot"], ["cot", "drop"], ["on-longer"]],
    seeds=[0, 1],
    evaluation={"tasks": ["longer", "told"]},
)
ENDS = [f"llama@{seed}+{end}" for end in ("cot", "cot+drop", "on-longer") for seed in (0, 1)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.csv").write_text("question,answer\nq?,1\n")


def workflow(**changes) -> Workflow:
    return Workflow({**CONFIG, **changes}, "config.yaml")


def told(**changes) -> str:
    with pytest.raises(CopraError) as caught:
        workflow(**changes)
    return str(caught.value)


def test_the_ends_of_all_recipes_are_asked_but_for_their_own_task():
    found = workflow()
    longer = [f"longer/{name}" for name in ENDS if "on-longer" not in name]
    assert found.on_other_tasks == [*longer, *(f"told/{name}" for name in ENDS)]
    predictions = {f"results/config/evaluations/{name}/predictions.parquet" for name in found.on_other_tasks}
    assert predictions <= set(found.artifacts())
    assert workflow(evaluation={}).on_other_tasks == []
    assert workflow(evaluation={"tasks": ["sums"]}, recipes=[["cot"]]).on_other_tasks == []


def test_an_evaluation_reads_the_questions_of_the_task_and_what_the_model_was_trained_on():
    found = workflow()
    assert found.data("llama@0+cot", "test") == ["results/config/data/sums/test.json"]
    assert found.data("told/llama@0+cot", "test") == ["results/config/data/told/test.json"]
    own = [f"results/config/data/sums/{split}.json" for split in ("train", "valid")]
    assert found.trained_on("told/llama@0+cot") == own
    assert found.trained_on("told/llama@0+on-longer") == [path.replace("sums", "longer") for path in own]
    assert found.trained_on("llama@0+cot") == found.trained_on("longer/llama@0+on-longer") == []
    with pytest.raises(CopraError, match="this config has no task 'nothing'"):
        found.data("nothing/llama@0+cot", "test")
    with pytest.raises(CopraError, match="no recipe of this config leads to the model 'llama@9'"):
        found.data("told/llama@9", "test")


def test_settings_name_another_task_and_leave_those_of_the_own_as_they_were():
    found, alone = workflow(), workflow(evaluation={})
    assert found.evaluate_settings("llama@0+cot") == alone.evaluate_settings("llama@0+cot")
    assert table_settings(found, "accuracy_vs_flops") == table_settings(alone, "accuracy_vs_flops")
    own, other = (json.loads(found.evaluate_settings(f"{task}llama@0+cot")) for task in ("", "told/"))
    assert "trained_on" not in own
    assert other == {**own, "task": "told", "trained_on": "sums"}
    texts = workflow(tasks={**CONFIG["tasks"], "told": {**TOLD, "answer_type": "text"}})
    assert json.loads(texts.evaluate_settings("told/llama@0+cot"))["answers"] == "text"


def test_the_table_lists_tasks_with_the_recipes_that_were_asked_them():
    asked = json.loads(table_settings(workflow(reference="llama+cot"), "accuracy_by_task"))
    assert asked["reference"] == "llama+cot"
    assert [(row["task"], row["recipe"]) for row in asked["asked"]] == [
        ("sums", "llama+cot"),
        ("sums", "llama+cot+drop"),
        *((task, f"llama+{end}") for task in ("longer", "told") for end in ("cot", "cot+drop", "on-longer")),
    ]
    rows = {(row["task"], row["recipe"]): row for row in asked["asked"]}
    assert rows["sums", "llama+cot"]["evaluations"] == ENDS[:2]
    assert rows["longer", "llama+on-longer"]["evaluations"] == ENDS[4:]
    assert rows["told", "llama+cot+drop"] == {
        "task": "told",
        "recipe": "llama+cot+drop",
        "base": "llama",
        "pruning": "drop",
        "method": "cot",
        "evaluations": [f"told/{name}" for name in ENDS[2:4]],
    }


def test_the_table_and_the_figure_are_made_where_other_tasks_are_asked():
    def about_tasks(found):
        return [path for path in [*table_files(found), *figure_files(found)] if "by_task" in path]

    assert len(about_tasks(workflow())) == 6
    assert about_tasks(workflow(evaluation={})) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"tasks": ["longe"]}},
            "evaluation.tasks: 'longe' is not in tasks (did you mean 'longer'?)",
        ),
        ({"evaluation": {"tasks": ["told", "told"]}}, "evaluation.tasks: 'told' is given twice"),
        (
            {"evaluation": {"tasks": ["told"], "split": "valid"}},
            "evaluation.tasks: 'told' has no valid split, which evaluation.split names; give it rows, ",
        ),
        (
            {"task": "told", "evaluation": {}},
            "task: 'told' has no train and valid split, and a task to train on needs all three",
        ),
        (
            {"steps": {**CONFIG["steps"], "cot": {"kind": "cot", "task": "told", "training": TRAINING}}},
            "steps.cot.task: 'told' has no train and valid split",
        ),
    ],
)
def test_a_task_that_lacks_a_split_or_a_name_is_refused(changes, message):
    assert told(**changes).startswith(f"config.yaml: {message}")


def test_a_prompt_that_takes_numbers_is_not_asked_for_texts():
    tasks = {**CONFIG["tasks"], "told": {**TOLD, "answer_type": "text"}}
    assert told(tasks=tasks, recipes=[["cot", "ask"], ["cot", "drop", "ask"]]) == (
        "config.yaml: evaluation.tasks: 'ask' takes a number for the answer; 'told' needs steps.ask.answer: "
        "strict. Set it, or leave the task out."
    )
    strict = {**CONFIG["steps"], "ask": {"kind": "few_shot", "answer": "strict"}}
    assert workflow(tasks=tasks, steps=strict, recipes=[["cot", "ask"]]).on_other_tasks
    # A prompt that a training follows does not answer.
    assert workflow(tasks=tasks, recipes=[["cot"]]).on_other_tasks


def test_methods_that_learn_from_steps_are_refused_on_a_task_without_any():
    tasks = {**CONFIG["tasks"], "plain": PLAIN}
    methods = ("cot", "coconut", "codi", "scratchpad", "icot_si", "no_cot", "pause", "looped")
    steps = {kind.replace("_", "-"): {"kind": kind, "training": TRAINING} for kind in methods}
    changes = {"task": "plain", "tasks": tasks, "steps": steps, "evaluation": {}}
    lines = told(**changes, recipes=[[name] for name in steps]).split("\n")
    assert [line.split(": ")[3].split("'")[1] for line in lines] == list(steps)[:5]
    assert lines[0] == (
        "config.yaml: recipes: llama+cot: 'cot' learns from steps, and task 'plain' has none: name their "
        "column under columns.steps, or take no_cot, pause or looped"
    )
    assert len(workflow(**changes, recipes=[["no-cot"], ["pause"], ["looped"]]).tree.recipes) == 3
    named = {**tasks, "plain": {**PLAIN, "columns": {"steps": "why"}}}
    assert workflow(**{**changes, "tasks": named}, recipes=[["cot"]]).tree.recipes
