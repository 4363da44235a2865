"""Presets of real models: the data that their published numbers come from, and trainings of some length."""

import sys
import types
from functools import reduce
from pathlib import Path

import pytest

from copra.commands.experiment import merged
from copra.experiment.workflow import Workflow
from copra.plan.estimate import Estimate
from copra.plan.lengths import length_warnings, training_lengths
from copra.tasks.task import BadRow, Row
from copra.utils.files import read_yaml

CONFIG = Path(__file__).parents[2] / "config"
PUBLISHED = ("gpt2", "gpt2-methods", "llama-3.2-1b", "llama-3.2-1b-methods")
EPOCH = 3013
"""Batches of 128 of GSM8K-Aug's 385,620 rows."""


def workflow_of(*names):
    """The workflow of presets laid over one another."""
    files = [CONFIG / f"{name}.yaml" for name in names]
    return Workflow(reduce(merged, map(read_yaml, files)), *map(str, files))


@pytest.fixture
def lengths_of(tmp_path):
    """Returns the training lengths of presets laid over one another."""

    def lengths(*names):
        return training_lengths(Estimate(workflow_of(*names), tmp_path / "results", cached=set()))

    return lengths


@pytest.mark.parametrize("name", [*PUBLISHED, "smollm2-135m"])
def test_no_training_of_a_real_model_is_short(lengths_of, name):
    assert length_warnings(lengths_of(name)) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_with_gsm8ks_own_rows_lengths_are_in_steps_and_long_enough(lengths_of, name):
    found = lengths_of(name, f"gsm8k/{name}")
    assert length_warnings(found) == []
    assert {length.rows for length in found} == {6973}
    assert workflow_of(name, f"gsm8k/{name}").folder == f"results/{name}-gsm8k", "beside those of GSM8K-Aug"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gpt2", {"cot": 6 * EPOCH, "coconut": 3 * EPOCH, "without-curriculum": 12 * EPOCH}),
        ("gpt2-methods", {"cot": 6 * EPOCH, "coconut": 3 * EPOCH, "codi": 40 * EPOCH}),
        ("llama-3.2-1b", {"cot": 3 * EPOCH, "coconut": EPOCH}),
        ("llama-3.2-1b-methods", {"cot": 3 * EPOCH, "coconut": EPOCH, "codi": 10 * EPOCH}),
    ],
)
def test_stages_have_the_published_steps(lengths_of, name, steps):
    found = {length.step: length.steps for length in lengths_of(name)}
    assert {step: found[step] for step in steps} == steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_gsm8k_aug_is_read_from_the_hub(name, monkeypatch):
    """In the form of whynlp/gsm8k-aug, whose one config has a name of its own."""

    def row(question, answer="360", steps=("<<600*30/100=180>>", "<<180*2=360>>")):
        return {"question": question, "steps": list(steps), "answer": answer}

    def load_dataset(name, config=None, revision=None):
        assert name == "whynlp/gsm8k-aug"
        if config is not None:
            raise ValueError(f"BuilderConfig {config!r} not found. Available: ['default']")
        train = [row("a?"), row("b?", "3:30 pm"), row("c?", "-7", [])]
        return {"train": train, "validation": [row("v?")], "test": [row("t?")]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = workflow_of(name).experiment.tasks["gsm8k"]
    steps = ("<<600*30/100=180>>", "<<180*2=360>>")
    assert list(task.rows()) == [
        ("train", Row("a?", steps, "360")),
        ("train", BadRow("whynlp/gsm8k-aug, split train", 2, "the answer '3:30 pm' is not a number")),
        ("train", Row("c?", (), "-7")),
        ("valid", Row("v?", steps, "360")),
        ("test", Row("t?", steps, "360")),
    ]
    assert task.bad_rows == "drop"


PUBLISHED_ROWS = {
    "madrylab/gsm8k-platinum": (
        {"question": "How many clips?", "answer": "Half is <<48/2=24>>24.\n#### 24", "cleaning_status": "ok"},
        Row("How many clips?", (), "24"),
    ),
    "reasoning-machines/gsm-hard": (
        {"input": "How much for 6887483 eggs?", "code": "def solution():", "target": -9867630.0},
        Row("How much for 6887483 eggs?", (), "-9867630"),
    ),
    "ChilleD/SVAMP": (
        {
            "ID": "chal-1",
            "Body": "Ann has 3 packs",
            "Question": "How many?",
            "Equation": "3",
            "Answer": "3.0",
        },
        Row("Ann has 3 packs How many?", (), "3.0"),
    ),
    "ChilleD/MultiArith": ({"question": " How many?", "final_ans": "64"}, Row("How many?", (), "64")),
}
"""A row of each other test set, in the columns that it has on the Hub, and what is made of it."""


@pytest.mark.parametrize("name", [*PUBLISHED, "smollm2-135m"])
def test_other_test_sets_are_laid_over_any_preset_and_asked_of_all_recipes(name, monkeypatch):
    asked, alone = workflow_of(name, "gsm8k/other-test-sets"), workflow_of(name)
    tasks = asked.experiment.evaluation.tasks
    assert asked.on_other_tasks == [f"{task}/{end}" for task in tasks for end in dict.fromkeys(asked.ends)]
    assert (asked.folder, set(asked.tree.nodes)) == (alone.folder, set(alone.tree.nodes))

    def load_dataset(name, config, revision):
        assert config == ("main" if name == "madrylab/gsm8k-platinum" else None)
        return {"train" if name.endswith("hard") else "test": [PUBLISHED_ROWS[name][0]]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = {task: asked.experiment.tasks[task] for task in tasks}
    assert {task.hub_name for task in found.values()} == set(PUBLISHED_ROWS)
    for task in found.values():
        assert list(task.rows()) == [("test", PUBLISHED_ROWS[task.hub_name][1])]
        assert task.splits == ("test",)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("llama")])
def test_the_llama_presets_take_the_model_of_the_numbers_beside_them(name):
    assert workflow_of(name).experiment.bases["llama"].path == "meta-llama/Llama-3.2-1B-Instruct"
    assert "Instruct" in (CONFIG / f"{name}.yaml").read_text().splitlines()[1]
