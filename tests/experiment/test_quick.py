"""Quick forms of configs: legal, small, and with all that the whole run has."""

from collections import Counter
from pathlib import Path

import pytest

from copra.experiment.outputs import figure_files, table_files
from copra.experiment.quick import LEAST, ROWS, quick, stand_ins
from copra.experiment.shipped import config_file, presets
from copra.experiment.workflow import Workflow
from copra.plan.estimate import stage_of
from copra.tasks.generated import DrawnTask
from copra.tasks.registry import ALL_TASKS
from copra.tasks.task import Task
from copra.utils.errors import CopraError
from copra.utils.files import read_yaml
from helpers.tiny import tiny_config

WHOLE = {name: path for name, path in presets().items() if not name.startswith("gsm8k/")}


def workflow_of(config, name):
    return Workflow(config, f"{name}.yaml")


@pytest.mark.parametrize("name", WHOLE)
def test_a_preset_has_the_same_rules_tables_and_figures(name):
    """With the first seed alone; the small models in place of published ones are not made here."""
    config = read_yaml(WHOLE[name])
    small = quick(config, name)
    whole, found = (
        workflow_of({**config, "seeds": config.get("seeds", [0])[:1]}, name),
        workflow_of(small, name),
    )
    assert found.folder == f"results/{Path(whole.folder).name}-quick"
    kinds = [Counter(node.kind for node in flow.tree.nodes.values()) for flow in (whole, found)]
    assert kinds[0] == kinds[1]
    assert [end.order for end in whole.tree.recipes] == [end.order for end in found.tree.recipes]
    for files in (table_files, figure_files):
        assert files(found) == [path.replace(whole.folder, found.folder) for path in files(whole)]


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_of_it_is_large(name):
    flow = workflow_of(quick(read_yaml(WHOLE[name]), name), name)
    trained = [node for node in flow.tree.nodes.values() if node.kind == "train"]
    assert trained
    for node in trained:
        assert node.settings["training"]["steps"] <= LEAST["steps"]
        assert node.settings["training"]["batch_size"] <= LEAST["batch_size"]
        assert not node.settings["training"].get("stop_early")
        assert stage_of(node).least_steps <= node.settings["training"]["steps"]
    for task in flow.experiment.tasks.values():
        assert task.is_local
        sizes = task.limit or {split: getattr(task, split) for split in task.splits}
        assert all(sizes[split] <= ROWS[split] for split in task.splits)
    for base in flow.experiment.bases.values():
        assert base.path is None or base.path.startswith("results/")
    assert flow.experiment.evaluation.max_new_tokens <= LEAST["max_new_tokens"]
    assert flow.experiment.compute.gpu == 0


def test_small_models_stand_in_for_published_ones():
    config = read_yaml(WHOLE["gpt2"])
    ((place, made),) = stand_ins(config, "gpt2").items()
    assert place == f"{quick(config, 'gpt2')['bases']['gpt2']['path']}/copra.json"
    flow = workflow_of(made, "config")
    assert place == f"{flow.folder}/models/gpt2@0/copra.json"
    assert flow.experiment.bases["gpt2"].from_scratch.architecture == "gpt2"
    assert stand_ins(read_yaml(WHOLE["addition"]), "addition") == {}


def test_few_questions_are_asked_of_converted_models_and_small_ones_have_a_form():
    wanted = {"recipes": ["gpt2+cot"], "formats": ["gguf-f16"], "questions": 100}
    config = {**read_yaml(WHOLE["gpt2"]), "conversions": wanted}
    assert quick(config, "gpt2")["conversions"] == {**wanted, "questions": LEAST["questions"]}
    for formats, tokenizer in ((["executorch-f32"], "words"), (["executorch-f32", "gguf-f16"], "bpe")):
        config["conversions"] = {**wanted, "formats": formats}
        (made,) = stand_ins(config, "gpt2").values()
        assert made["bases"]["gpt2"]["from_scratch"]["tokenizer"] == tokenizer


def test_a_users_rows_are_read_where_they_are(tmp_path):
    task = {"kind": "rows", "train": "a.csv", "validation_share": 0.1, "test_share": 0.1}
    config = {"tasks": {"rows": task}, "bases": {}, "steps": {}, "recipes": []}
    found = quick(config, "mine")["tasks"]["rows"]
    assert found == {**task, "limit": ROWS}
    task_of_files = {"kind": "gsm8k", "source": "files", "train": "a.jsonl", "test": "b.jsonl"}
    found = quick({**config, "tasks": {"gsm8k": task_of_files}}, "mine")["tasks"]["gsm8k"]
    assert found == {**task_of_files, "validation_rows": ROWS["valid"], "limit": ROWS}
    assert config["tasks"]["rows"] == task, "the config itself is not changed"


def test_shipped_files_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").write_text("")
    assert config_file("gpt2") == Path("gpt2")
    assert config_file("gsm8k/gpt2") == presets()["gsm8k/gpt2"]
    with pytest.raises(CopraError, match=r"adition: no config file, and no preset.*addition"):
        config_file("adition")


def test_tasks_of_plugins_are_drawn_or_limited(monkeypatch):
    class Drawn(DrawnTask):
        pass

    monkeypatch.setitem(ALL_TASKS, "drawn", Drawn)
    monkeypatch.setitem(ALL_TASKS, "read", Task)
    tasks = {"drawn": {"kind": "drawn", "train": 20}, "read": {"kind": "read", "limit": {"test": 5}}}
    found = quick(tiny_config(tasks=tasks), "config")["tasks"]
    assert found["drawn"] == {"kind": "drawn", **ROWS, "train": 20}
    assert found["read"] == {"kind": "read", "limit": {**ROWS, "test": 5}}
