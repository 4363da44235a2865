"""What the rules ask about models that learn from others and about prompts."""

import json
import re

import pytest

from copra.errors import CopraError
from copra.workflow import Workflow

TRAINING = {"steps": 8, "batch_size": 16}
CONFIG = {
    "task": "sums",
    "tasks": {"sums": {"kind": "word_sums"}},
    "base": "llama",
    "bases": {"llama": {"from_scratch": {"hidden_size": 16, "layers": 2, "heads": 4, "ffn_size": 32}}},
    "steps": {
        "cot": {"kind": "cot", "training": TRAINING},
        "cot-2": {"kind": "cot", "training": TRAINING},
        "kd": {"kind": "icot_kd", "training": {**TRAINING, "select": "accuracy"}},
        "kd-2": {"kind": "icot_kd", "teacher": "llama+cot-2", "training": TRAINING},
        "pause": {"kind": "pause", "training": TRAINING},
        "drop": {"kind": "prune", "unit": "layers", "metric": "cosine", "budget": {"count": 1}},
        "ask": {"kind": "few_shot"},
        "ask-2": {"kind": "few_shot", "file": "examples.jsonl"},
    },
    "recipes": [["cot", "kd"], ["cot", "kd-2"], ["cot", "drop", "pause"], ["cot", "ask"], ["cot", "ask-2"]],
}


def workflow(**changes) -> Workflow:
    return Workflow({**CONFIG, **changes}, "config.yaml")


def test_the_manifest_of_the_teacher_is_what_a_training_waits_for():
    found = {name: workflow().teacher(name) for name in workflow().trainings}
    assert found == {
        "llama@0+cot": [],
        "llama@0+cot+kd.0": ["results/models/llama@0+cot/copra.json"],
        "llama@0+cot+kd.1": ["results/models/llama@0+cot/copra.json"],
        "llama@0+cot+kd": [],
        "llama@0+cot-2": [],
        "llama@0+cot+kd-2.0": ["results/models/llama@0+cot-2/copra.json"],
        "llama@0+cot+kd-2.1": ["results/models/llama@0+cot-2/copra.json"],
        "llama@0+cot+kd-2": [],
        "llama@0+cot+drop+pause": [],
    }


def test_a_change_of_teacher_is_no_change_of_settings():
    """The manifest that it waits for changes instead."""
    steps = CONFIG["steps"] | {"kd-2": {**CONFIG["steps"]["kd-2"], "teacher": "llama+cot"}}
    first, second = workflow(), workflow(steps=steps)
    name = "llama@0+cot+kd-2.0"
    assert first.train_settings(name) == second.train_settings(name)
    assert first.teacher(name) != second.teacher(name)


def test_only_models_that_can_answer_are_evaluated_after_a_stage():
    staged = ["llama@0+cot+kd.1", "llama@0+cot+kd", "llama@0+cot+kd-2.1", "llama@0+cot+kd-2"]
    asked = workflow(evaluation={"stages": True})
    assert asked.staged == staged
    assert workflow().staged == []
    evaluated = {path.split("/")[2] for path in asked.artifacts() if path.startswith("results/evaluations/")}
    assert evaluated == {*staged, *asked.ends, *asked.before_and_after}
    assert not any(name.endswith(".0") for name in evaluated)
    drawn = json.loads(asked.figure_settings("curriculum"))["nodes"]
    assert [(row["recipe"], row["stage"], row["node"]) for row in drawn[:2]] == [
        ("llama+cot+kd", 1, "llama@0+cot+kd.1"),
        ("llama+cot+kd", 2, "llama@0+cot+kd"),
    ]


def test_every_node_is_made_by_the_rule_of_its_kind():
    patterns = workflow()
    rules = {"train": patterns.trained, "prune": patterns.pruned, "prompt": patterns.prompted}
    for node in patterns.tree.nodes.values():
        made_by = [kind for kind, pattern in rules.items() if re.fullmatch(pattern, node.name)]
        assert made_by == ([] if node.kind == "base" else [node.kind])
    nothing = workflow(recipes=[["cot"]], steps={"cot": CONFIG["steps"]["cot"]})
    assert not any(re.fullmatch(nothing.prompted, f"llama@0+{step}") for step in ("cot", "", "ask"))


def test_the_files_of_a_prompt_are_watched(monkeypatch):
    asked = workflow()
    assert asked.prompt_files("llama@0+cot+ask") == []
    assert asked.prompt_files("llama@0+cot+ask-2") == ["examples.jsonl"]
    monkeypatch.delenv("EXAMPLES", raising=False)
    steps = CONFIG["steps"] | {"ask": {"kind": "few_shot", "file": "${EXAMPLES}/few.jsonl"}}
    with pytest.raises(CopraError, match="EXAMPLES, which is not set"):
        workflow(steps=steps).prompt_files("llama@0+cot+ask")
    monkeypatch.setenv("EXAMPLES", "/data")
    assert workflow(steps=steps).prompt_files("llama@0+cot+ask") == ["/data/few.jsonl"]


def test_a_prompt_is_made_from_its_own_settings():
    settings = json.loads(workflow().prompt_settings("llama@0+cot+ask"))
    assert settings["node"] == "llama@0+cot+ask"
    assert (settings["prompt"]["exemplars"], settings["prompt"]["stops"]) == (8, ["Q:"])
    assert set(settings) == {"node", "prompt", "code"}
    assert workflow().data("llama@0+cot+ask") == "results/data/sums"
    assert workflow().parent("llama@0+cot+ask") == "results/models/llama@0+cot"


def test_a_table_has_a_prompted_recipe_by_the_name_of_its_step():
    rows = json.loads(workflow().table_settings("accuracy_vs_flops"))["recipes"]
    found = {row["recipe"]: (row["method"], row["pruning"], row["nodes"]) for row in rows}
    assert found["llama+cot+ask"] == ("ask", "dense", ["llama@0+cot+ask"])
    # A teacher that no recipe ends at has no row.
    assert "llama+cot-2" not in found


def test_what_accuracy_needs_is_in_the_settings_where_accuracy_selects():
    asked = workflow()
    assert json.loads(asked.train_settings("llama@0+cot+kd"))["answers"] == "number"
    assert "answers" not in json.loads(asked.train_settings("llama@0+cot"))


def looking(**evaluation) -> Workflow:
    """Two seeds of recipes that end with latents in a loop, learned ones, and none."""
    steps = CONFIG["steps"] | {
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": TRAINING},
        "codi": {"kind": "codi", "training": TRAINING},
        "pauses": {"kind": "codi", "iterations": 0, "training": TRAINING},
        "as-pause": {"kind": "coconut", "thought": "embedding", "training": TRAINING},
        "without": {"kind": "coconut", "thought": "none", "training": TRAINING},
    }
    names = ("coconut", "codi", "pauses", "as-pause", "without", "pause", "ask")
    recipes = [["cot"], *(["cot", name] for name in names), ["cot", "coconut", "drop"]]
    recipes.append(["cot", "coconut", "drop", "ask"])
    return workflow(steps=steps, recipes=recipes, seeds=[0, 1], evaluation=evaluation)


def test_ends_of_recipes_with_latents_are_swept():
    ends = ("coconut", "codi", "pauses", "as-pause", "pause", "coconut+drop")
    swept = [f"llama@{seed}+cot+{end}" for end in ends for seed in (0, 1)]
    found = looking(latents=[0, 2])
    assert found.swept == swept
    rows = json.loads(found.table_settings("accuracy_vs_latents"))["swept"]
    assert rows[:2] == [{"recipe": "llama+cot+coconut", "node": f"llama@{s}+cot+coconut"} for s in (0, 1)]
    assert looking().swept == []


def test_only_latents_that_are_hidden_states_are_looked_at():
    """One seed of each recipe."""
    found = looking(lens=3)
    assert found.seen_through == [f"llama@0+cot+{end}" for end in ("coconut", "codi", "coconut+drop")]
    assert json.loads(found.table_settings("latent_lens"))["seen"] == found.seen_through
    assert looking().seen_through == []


def test_tables_and_figures_about_latents_are_asked_for_where_there_is_something_to_show():
    def about_latents(found):
        return {path for path in [*found.tables(), *found.figures()] if "laten" in path}

    swept = {f"results/tables/accuracy_vs_latents.{kind}" for kind in ("parquet", "csv", "md", "tex")}
    swept |= {f"results/figures/accuracy_vs_latents.{kind}" for kind in ("svg", "png")}
    seen = {f"results/tables/latent_lens.{kind}" for kind in ("parquet", "csv", "md", "tex")}
    seen |= {
        f"results/figures/latent_lens/llama@0+cot+{end}.{kind}"
        for end in ("coconut", "codi", "coconut+drop")
        for kind in ("svg", "png")
    }
    assert about_latents(looking()) == set()
    assert about_latents(looking(latents=[1])) == swept
    assert about_latents(looking(lens=1)) == seen
    assert about_latents(looking(lens=1, latents=[1])) == swept | seen
    # No recipe of these has latents, or none that are hidden states.
    asked = {"latents": [1], "lens": 1}
    assert about_latents(workflow(recipes=[["cot"], ["cot", "ask"]], evaluation=asked)) == set()
    assert about_latents(workflow(recipes=[["cot", "pause"]], evaluation=asked)) == swept


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({"lens": 4}, {"lens"}),
        ({"latents": [0, 3]}, {"sweep"}),
        ({"limit": 5}, {"sweep", "evaluate"}),
        ({"split": "valid"}, {"lens", "sweep", "evaluate"}),
        ({"max_new_tokens": 7}, {"lens", "sweep", "evaluate"}),
        ({"batch_size": 7}, {"lens", "sweep", "evaluate"}),
        ({"stages": True}, set()),
    ],
)
def test_a_changed_evaluation_changes_the_settings_of_what_depends_on_it(change, rerun):
    before, after = looking(lens=3, latents=[0, 2]), looking(**{"lens": 3, "latents": [0, 2], **change})
    node = "llama@0+cot+coconut"
    verbs = ("lens", "sweep", "evaluate")
    settings = [[getattr(found, f"{verb}_settings")(node) for verb in verbs] for found in (before, after)]
    assert {verb for verb, old, new in zip(verbs, *settings, strict=True) if old != new} == rerun


def test_another_table_or_figure_of_latents_is_no_change_of_the_others():
    before, after = looking(latents=[1]), looking(latents=[1, 2], lens=5)
    for table in ("accuracy_vs_flops", "accuracy_vs_latents", "before_fine_tuning", "latent_lens"):
        same = before.table_settings(table) == after.table_settings(table)
        assert same == (table != "latent_lens")
    for figure in ("accuracy_vs_flops", "accuracy_vs_latents", "training_curves", "latent_lens"):
        assert before.figure_settings(figure) == after.figure_settings(figure)
