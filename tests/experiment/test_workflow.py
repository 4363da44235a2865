"""What the rules ask about models that learn from others and about prompts."""

import json
import re
from pathlib import Path

import pytest

from copra.experiment.contrast_problems import contrast_notes
from copra.experiment.outputs import TABLES, figure_files, figure_settings, table_files, table_settings
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from helpers.tiny import DROP, tiny_config

TRAINING = {"steps": 8, "batch_size": 16}
CONFIG = tiny_config(
    bases__llama__from_scratch={"hidden_size": 16, "layers": 3, "heads": 4, "intermediate_size": 128},
    steps={
        "cot": {"kind": "cot", "training": TRAINING},
        "cot-2": {"kind": "cot", "training": TRAINING},
        "kd": {"kind": "icot_kd", "training": {**TRAINING, "select_best_by": "accuracy"}},
        "kd-2": {"kind": "icot_kd", "teacher": "llama+cot-2", "training": TRAINING},
        "pause": {"kind": "pause", "training": TRAINING},
        "twice": {"kind": "looped", "training": TRAINING},
        "drop": DROP,
        "ask": {"kind": "few_shot"},
        "ask-2": {"kind": "few_shot", "file": "examples.jsonl"},
    },
    recipes=[["cot", "kd"], ["cot", "kd-2"], ["cot", "drop", "pause"], ["cot", "ask"], ["cot", "ask-2"]],
)


def workflow(**changes) -> Workflow:
    return Workflow({**CONFIG, **changes}, "config.yaml")


def test_the_manifest_of_the_teacher_is_what_a_training_waits_for():
    found = {name: workflow().teacher(name) for name in workflow().trainings}
    assert found == {
        "llama@0+cot": [],
        "llama@0+cot+kd.0": ["results/config/models/llama@0+cot/copra.json"],
        "llama@0+cot+kd.1": ["results/config/models/llama@0+cot/copra.json"],
        "llama@0+cot+kd": [],
        "llama@0+cot-2": [],
        "llama@0+cot+kd-2.0": ["results/config/models/llama@0+cot-2/copra.json"],
        "llama@0+cot+kd-2.1": ["results/config/models/llama@0+cot-2/copra.json"],
        "llama@0+cot+kd-2": [],
        "llama@0+cot+drop+pause": [],
    }


def test_the_manifest_of_the_pretrained_model_is_what_a_training_waits_for():
    codi = {"kind": "codi", "training": TRAINING, "auxiliary_decoder": {"decoder": "pretrained"}}
    found = workflow(steps=CONFIG["steps"] | {"codi": codi}, recipes=[["cot", "drop", "codi"]])
    assert found.pretrained("llama@0+cot+drop+codi") == ["results/config/models/llama@0+cot+drop/copra.json"]
    assert found.pretrained("llama@0+cot") == []


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
    evaluated = {
        path.split("/")[3] for path in asked.artifacts() if path.startswith("results/config/evaluations/")
    }
    assert evaluated == {*staged, *asked.ends, *asked.before_and_after}
    assert not any(name.endswith(".0") for name in evaluated)
    drawn = json.loads(figure_settings(asked, "curriculum"))["nodes"]
    assert [(row["stage"], row["node"]) for row in drawn[:2]] == [
        (1, "llama@0+cot+kd.1"),
        (2, "llama@0+cot+kd"),
    ]


def test_every_node_is_made_by_the_rule_of_its_kind():
    patterns = workflow()
    rules = {"train": patterns.trained, "prune": patterns.pruned, "prompt": patterns.prompted}
    for node in patterns.tree.nodes.values():
        made_by = [kind for kind, pattern in rules.items() if re.fullmatch(pattern, node.name)]
        assert made_by == ([] if node.kind == "base" else [node.kind])
    nothing = workflow(recipes=[["cot"]], steps={"cot": CONFIG["steps"]["cot"]})
    assert not any(re.fullmatch(nothing.prompted, f"llama@0+{step}") for step in ("cot", "", "ask"))


def test_the_file_of_a_prompt_is_watched(monkeypatch):
    asked = workflow()
    assert asked.prompt_source("llama@0+cot+ask") is None
    assert asked.prompt_source("llama@0+cot+ask-2") == Path("examples.jsonl")
    monkeypatch.delenv("EXAMPLES", raising=False)
    steps = CONFIG["steps"] | {"ask": {"kind": "few_shot", "file": "${EXAMPLES}/few.jsonl"}}
    with pytest.raises(CopraError, match="EXAMPLES, which is not set"):
        workflow(steps=steps).prompt_source("llama@0+cot+ask")
    monkeypatch.setenv("EXAMPLES", "/data")
    assert workflow(steps=steps).prompt_source("llama@0+cot+ask") == Path("/data/few.jsonl")


def test_a_prompt_is_made_from_its_own_settings():
    settings = json.loads(workflow().prompt_settings("llama@0+cot+ask"))
    assert settings["node"] == "llama@0+cot+ask"
    assert (settings["prompt"]["num_fewshot"], settings["prompt"]["stops"]) == (
        8,
        ["Q:", "</s>", "<|im_end|>"],
    )
    assert "worked" not in settings
    assert set(settings) == {"node", "prompt", "code"}
    assert workflow().data("llama@0+cot+ask", "train") == ["results/config/data/sums/train.json"]
    assert workflow().parent("llama@0+cot+ask") == "results/config/models/llama@0+cot"


def test_a_table_has_a_prompted_recipe_by_the_name_of_its_step():
    rows = json.loads(table_settings(workflow(), "accuracy_vs_flops"))["recipes"]
    found = {row["recipe"]: (row["method"], row["pruning"], row["nodes"]) for row in rows}
    assert found["llama+cot+ask"] == ("ask", "dense", ["llama@0+cot+ask"])
    # A teacher that no recipe ends at has no row.
    assert "llama+cot-2" not in found


def test_what_accuracy_needs_is_in_the_settings_where_accuracy_selects():
    asked = workflow()
    assert json.loads(asked.train_settings("llama@0+cot+kd"))["answers"] == "number"
    assert "answers" not in json.loads(asked.train_settings("llama@0+cot"))


def test_what_accuracy_needs_is_in_the_settings_where_it_can_end_a_training():
    stop = {**TRAINING, "stop_early": {"target_accuracy": 0.5}}
    steps = CONFIG["steps"] | {"cot": {"kind": "cot", "training": stop}}
    settings = json.loads(workflow(steps=steps).train_settings("llama@0+cot"))
    assert (settings["answers"], settings["max_new_tokens"]) == ("number", 256)
    assert settings["training"]["stop_early"]["target_accuracy"] == 0.5


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
    rows = json.loads(table_settings(found, "accuracy_vs_latents"))["recipes"]
    labels = {"base": "llama", "pruning": "dense", "method": "coconut", "kind": "coconut"}
    labels |= {"recipe": "llama+cot+coconut", "order": "llama > cot > coconut"}
    assert rows[:2] == [{**labels, "node": f"llama@{seed}+cot+coconut"} for seed in (0, 1)]
    assert looking().swept == []


def test_only_latents_that_are_hidden_states_are_swapped():
    """All seeds of each recipe."""
    ends = ("coconut", "codi", "coconut+drop")
    found = looking(latents_from=["other"])
    assert found.swapped == [f"llama@{seed}+cot+{end}" for end in ends for seed in (0, 1)]
    assert json.loads(table_settings(found, "latent_sources"))["recipes"] == [
        {"recipe": f"llama+cot+{end}", "nodes": [f"llama@{seed}+cot+{end}" for seed in (0, 1)]}
        for end in ends
    ]
    assert looking().swapped == []


def test_only_latents_that_are_hidden_states_are_looked_at():
    """One seed of each recipe."""
    found = looking(lens=3)
    assert found.seen_through == [f"llama@0+cot+{end}" for end in ("coconut", "codi", "coconut+drop")]
    assert json.loads(table_settings(found, "latent_lens"))["nodes"] == found.seen_through
    assert looking().seen_through == []


def test_tables_and_figures_about_latents_are_asked_for_where_there_is_something_to_show():
    def about_latents(found):
        return {path for path in [*table_files(found), *figure_files(found)] if "laten" in path}

    swept = {f"results/config/tables/accuracy_vs_latents.{kind}" for kind in ("parquet", "csv", "md", "tex")}
    swept |= {
        f"results/config/figures/{name}.{kind}"
        for name in ("accuracy_vs_latents", "layers_and_latents")
        for kind in ("svg", "png")
    }
    seen = {f"results/config/tables/latent_lens.{kind}" for kind in ("parquet", "csv", "md", "tex")}
    seen |= {
        f"results/config/figures/latent_lens/llama@0+cot+{end}.{kind}"
        for end in ("coconut", "codi", "coconut+drop")
        for kind in ("svg", "png")
    }
    swapped = {path.replace("accuracy_vs_latents", "latent_sources") for path in swept}
    swapped -= {path for path in swapped if "layers_and_latents" in path}
    assert about_latents(looking()) == set()
    assert about_latents(looking(latents_from=["zeros"])) == swapped
    assert about_latents(looking(latents=[1])) == swept
    assert about_latents(looking(lens=1)) == seen
    assert about_latents(looking(lens=1, latents=[1])) == swept | seen
    # No recipe of these has latents, or none that are hidden states.
    asked = {"latents": [1], "lens": 1, "latents_from": ["other"]}
    assert about_latents(workflow(recipes=[["cot"], ["cot", "ask"]], evaluation=asked)) == set()
    alone = {path for path in swept if "layers" not in path}
    assert about_latents(workflow(recipes=[["cot", "pause"]], evaluation=asked)) == alone


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({"lens": 4}, {"logit_lens"}),
        ({"latents": [0, 3]}, {"sweep_latents"}),
        ({"latents_from": ["other", "mean"]}, {"swap_latents"}),
        ({"limit": 5}, {"sweep_latents", "swap_latents", "evaluate"}),
        ({"split": "valid"}, {"logit_lens", "sweep_latents", "swap_latents", "evaluate"}),
        ({"max_new_tokens": 7}, {"logit_lens", "sweep_latents", "swap_latents", "evaluate"}),
        ({"batch_size": 7}, {"logit_lens", "sweep_latents", "swap_latents", "evaluate"}),
        ({"compile": True}, {"sweep_latents", "evaluate"}),
        ({"stages": True}, set()),
    ],
)
def test_a_changed_evaluation_changes_the_settings_of_what_depends_on_it(change, rerun):
    asked = {"lens": 3, "latents": [0, 2], "latents_from": ["other"]}
    before, after = looking(**asked), looking(**{**asked, **change})
    node = "llama@0+cot+coconut"
    verbs = ("logit_lens", "sweep_latents", "swap_latents", "evaluate")
    settings = [[getattr(found, f"{verb}_settings")(node) for verb in verbs] for found in (before, after)]
    assert {verb for verb, old, new in zip(verbs, *settings, strict=True) if old != new} == rerun


def test_another_table_or_figure_of_latents_is_no_change_of_the_others():
    before, after = looking(latents=[1]), looking(latents=[1, 2], lens=5)
    tables = (
        "accuracy_vs_flops",
        "accuracy_vs_latents",
        "before_fine_tuning",
        "latent_sources",
        "latent_lens",
    )
    for table in tables:
        same = table_settings(before, table) == table_settings(after, table)
        assert same == (table != "latent_lens")
    about_latents = ("accuracy_vs_latents", "latent_sources", "latent_lens")
    for figure in ("accuracy_vs_flops", "training_curves", *about_latents):
        assert figure_settings(before, figure) == figure_settings(after, figure)


def test_models_that_last_trainings_started_from_are_evaluated_where_that_is_asked_for():
    """Those before all stages of a step, whatever comes after it; a base that cannot answer is only named."""
    steps = CONFIG["steps"] | {"coconut": {"kind": "coconut", "max_latent_stage": 1, "training": TRAINING}}
    recipes = [["cot"], ["cot", "drop", "cot-2", "coconut"], ["cot", "coconut", "drop", "ask"]]
    changes = {"steps": steps, "recipes": [*recipes, {"base": "hub", "steps": ["ask"]}], "seeds": [0, 1]}
    changes["bases"] = CONFIG["bases"] | {"hub": {"path": "a/hub"}}
    found = workflow(**changes, evaluation={"starts": True})
    starts = {end: start.name for end, start in found.starts.items()}
    assert starts == {
        f"llama@{seed}+cot{end}": f"llama@{seed}{start}"
        for seed in (0, 1)
        for end, start in (
            ("", ""),
            ("+drop+cot-2+coconut", "+cot+drop+cot-2"),
            ("+coconut+drop+ask", "+cot"),
        )
    }
    assert set(found.started) == {f"llama@{s}+cot{more}" for s in (0, 1) for more in ("", "+drop+cot-2")}
    assert "results/config/evaluations/llama@1+cot+drop+cot-2/predictions.parquet" in found.artifacts()
    rows = json.loads(table_settings(found, "accuracy_vs_flops"))["recipes"]
    assert [row["start"] and (row["start"]["recipe"], row["start"]["answers"]) for row in rows] == [
        ("llama", False),
        ("llama+cot+drop+cot-2", True),
        ("llama+cot", True),
        None,
    ]
    assert rows[1]["start"]["nodes"] == [f"llama@{seed}+cot+drop+cot-2" for seed in (0, 1)]
    plain = workflow(**changes)
    assert (plain.starts, plain.started) == ({}, [])
    assert "start" not in table_settings(plain, "accuracy_vs_flops")


CONTRAST = {"plus": ["llama+cot+pause"], "minus": ["llama+cot"]}


def contrasting(**changes) -> Workflow:
    recipes = [["cot"], ["cot", "pause"], ["cot", "ask"]]
    return workflow(**{"recipes": recipes, "seeds": [0, 1], "contrasts": {"ours": CONTRAST}, **changes})


def test_a_contrast_is_made_of_the_evaluations_of_its_recipes():
    found = contrasting(primary="ours")
    nodes = {f"llama+cot{end}": [f"llama@{seed}+cot{end}" for seed in (0, 1)] for end in ("", "+pause")}
    settings = json.loads(table_settings(found, "contrasts"))
    assert settings["contrasts"] == [{"name": "ours", **CONTRAST}]
    assert (settings["ends"], settings["primary"]) == (nodes, "ours")
    small = TABLES["contrasts"].files(found, "", large=False)
    assert {found.within("evaluations", path).split("/")[0] for path in small} == {
        node for each in nodes.values() for node in each
    }
    made = {"results/config/tables/contrasts.md", "results/config/figures/contrasts.svg"}
    assert made <= {*table_files(found), *figure_files(found)}
    assert not made & {
        path for each in [contrasting(contrasts={})] for path in (*table_files(each), *figure_files(each))
    }


def test_contrasts_are_no_change_of_the_other_tables():
    """A primary contrast leaves the comparisons with the reference as they are without a primary one."""
    before, after = contrasting(contrasts={}), contrasting(primary="ours")
    assert table_settings(before, "accuracy_vs_flops") == table_settings(after, "accuracy_vs_flops")
    both = {"reference": "llama+cot", "primary": "llama+cot+pause"}
    assert json.loads(table_settings(contrasting(**both), "contrasts"))["primary"] is None
    assert json.loads(table_settings(contrasting(**both), "accuracy_vs_flops"))["primary"] == both["primary"]


def test_unknown_recipes_in_a_contrast_are_named_with_their_place():
    wrong = {"plus": ["llama+cot+pausse"], "minus": ["llama+cto"]}
    with pytest.raises(CopraError) as caught:
        contrasting(contrasts={"ours": CONTRAST, "theirs": wrong})
    assert str(caught.value).split("\n") == [
        "config.yaml: contrasts.theirs.plus.0: 'llama+cot+pausse' is none of the recipes (did you mean "
        "'llama+cot+pause'?)",
        "config.yaml: contrasts.theirs.minus.0: 'llama+cto' is none of the recipes (did you mean "
        "'llama+cot'?)",
    ]


def test_a_contrast_is_between_recipes_of_one_task():
    other = {"kind": "cot", "task": "long", "training": TRAINING}
    changes = {
        "tasks": CONFIG["tasks"] | {"long": {"kind": "addition"}},
        "steps": CONFIG["steps"] | {"other": other},
        "recipes": [["cot"], ["other"]],
    }
    with pytest.raises(CopraError, match=r"contrasts\.ours: its recipes answer the questions of 2 tasks"):
        contrasting(**changes, contrasts={"ours": {"plus": ["llama+other"], "minus": ["llama+cot"]}})


def test_contrasts_of_one_seed_are_noted():
    one, two = contrasting(seeds=[3]), contrasting()
    (note,) = contrast_notes(one.experiment, one.tree)
    assert note.startswith("contrasts: with one seed there is no interval and no p-value (ours)")
    assert contrast_notes(two.experiment, two.tree) == []


CURVE = {
    "model": "llama+cot",
    "unit": "layers",
    "metrics": ["cosine", "greedy_loss", "random"],
    "remove": [1, 2],
}


def curving(*curves, **changes) -> Workflow:
    """Two seeds of recipes that share the model that the curves are of."""
    named = {f"curve-{number}": {**CURVE, **curve} for number, curve in enumerate(curves)}
    return workflow(
        recipes=[["cot", "kd"], ["cot", "ask"], ["cot", "pause"], ["cot", "twice"]],
        seeds=[0, 1],
        curves=named,
        **changes,
    )


def test_a_curve_is_measured_on_each_seed_of_its_model_with_the_scores_that_it_needs():
    asked = curving(
        {}, {"unit": "kv_groups", "metrics": ["taylor", "magnitude"], "objectives": ["answer", "latent"]}
    )
    assert asked.curved == {
        "curve-0": ["llama@0+cot", "llama@1+cot"],
        "curve-1": ["llama@0+cot", "llama@1+cot"],
    }
    assert asked.measured == [f"curve-{curve}/llama@{seed}+cot" for curve in (0, 1) for seed in (0, 1)]
    folder = "results/config/scores/llama@1+cot"
    assert asked.curve_scores("curve-0", "llama@1+cot") == [
        f"{folder}/cot/passes.json",
        f"{folder}/cot/layers.greedy_loss.json",
    ]
    needed = [f"{folder}/answer/passes.json", f"{folder}/latent/passes.json"]
    assert asked.curve_scores("curve-1", "llama@1+cot") == needed
    assert {*asked.curve_scores("curve-0", "llama@0+cot"), *needed} <= set(asked.scored)
    assert not [path for path in workflow(recipes=[["cot"]]).scored if "scores" in path]


def test_tables_and_figures_of_curves_are_asked_for_where_there_are_curves():
    def about_curves(found):
        paths = [*table_files(found), *figure_files(found)]
        named = {path.split("/", 3)[3].rsplit(".", 1)[0] for path in paths}
        return {name for name in named if "curve-" in name or name in ("pruning_curves", "drop_orders")}

    layers = {"pruning_curves", "drop_orders", "pruning_curves/curve-0", "drop_orders/curve-0"}
    groups = {"pruning_curves/curve-0", "pruning_curves", "drop_orders/curve-0"}
    assert about_curves(curving()) == set()
    assert about_curves(curving({})) == layers
    # Only layers have an order worth a table.
    assert about_curves(curving({"unit": "kv_groups", "metrics": ["gates"]})) == groups
    assert "results/config/figures/layer_distances/llama@0+cot/cot.svg" in figure_files(curving({}))


def drawn(name, **changes) -> bool:
    """True if a figure is made."""
    return f"results/config/figures/{name}.svg" in figure_files(workflow(**changes))


def test_after_fine_tuning_is_drawn_where_something_is_pruned_and_can_be_compared():
    assert drawn("after_fine_tuning", recipes=[["cot", "pause"], ["cot", "drop", "pause"]])
    assert not drawn("after_fine_tuning", recipes=[["cot"]])
    assert not drawn("after_fine_tuning", recipes=[["cot", "pause"], ["cot", "drop", "cot-2"]])


def test_training_curves_are_drawn_where_something_is_trained():
    pretrained = {"bases": {"hub": {"path": "a/model"}}, "base": "hub"}
    assert drawn("training_curves")
    assert not drawn("training_curves", **pretrained, recipes=[["ask"]])


def test_random_orders_alone_are_no_figure():
    found = figure_files(curving({"metrics": ["random"]}, {"metrics": ["random", "deepest"]}))
    assert [path for path in found if "drop_orders" in path and path.endswith("svg")] == [
        "results/config/figures/drop_orders/curve-1.svg"
    ]


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ([["cot", "coconut"], ["cot", "drop", "coconut"]], True),
        ([["cot", "drop", "coconut"], ["cot", "drop-2", "coconut"]], True),
        ([["cot", "drop", "coconut"], ["cot", "coconut", "drop"]], False),
        ([["cot", "drop", "coconut"], ["cot", "other-drop", "coconut"]], False),
        ([["cot", "coconut"], ["cot", "thin", "coconut"]], False),
        ([["cot", "coconut"], ["cot", "drop", "pause"]], False),
    ],
)
def test_layers_and_latents_is_drawn_where_recipes_of_a_method_differ_in_layers(recipes, expected):
    steps = CONFIG["steps"] | {
        "coconut": {"kind": "coconut", "training": TRAINING},
        "drop-2": {**DROP, "budget": {"count": 2}},
        "other-drop": {**DROP, "metric": "deepest"},
        "thin": {"kind": "prune", "unit": "neurons", "metric": "taylor", "budget": {"fraction": 0.5}},
    }
    asked = {"steps": steps, "recipes": recipes, "evaluation": {"latents": [0, 1]}}
    assert drawn("layers_and_latents", **asked) == expected
    assert not drawn("layers_and_latents", **asked | {"evaluation": {}})


def test_figures_get_the_methods_of_the_kinds_that_they_show_those_of_recipes_first():
    """A method of another kind changes no color, and must not make the figure again."""

    def methods(figure, **changes):
        found = json.loads(figure_settings(workflow(**changes), figure)).get("methods")
        return found and dict(found)

    ends = {"kd": "icot_kd", "kd-2": "icot_kd", "pause": "pause", "ask": "few_shot", "ask-2": "few_shot"}
    assert list(workflow().methods) == [*ends, "cot", "cot-2"]
    assert list(methods("training_curves")) == ["kd", "kd-2", "pause", "cot", "cot-2"]
    assert methods("accuracy_vs_flops") == methods("after_fine_tuning") == ends
    trained = {name: kind for name, kind in workflow().methods.items() if kind != "few_shot"}
    assert methods("training_curves") == trained
    assert methods("curriculum", evaluation={"stages": True}) == {"kd": "icot_kd", "kd-2": "icot_kd"}
    assert methods("accuracy_vs_latents", evaluation={"latents": [1]}) == {"pause": "pause"}
    assert methods("latent_lens") is None


def test_the_controls_of_coconut_are_kinds_of_their_own():
    controls = {
        "coconut": {},
        "pause_as_thought": {"thought": "embedding"},
        "without_thought": {"thought": "none"},
        "without_curriculum": {"curriculum": False},
    }
    steps = CONFIG["steps"] | {
        f"my-{kind}": {"kind": "coconut", "training": TRAINING, **changes}
        for kind, changes in controls.items()
    }
    found = workflow(steps=steps, recipes=[["cot", f"my-{kind}"] for kind in controls])
    assert found.methods == {f"my-{kind}": kind for kind in controls} | {"cot": "cot"}
    rows = json.loads(table_settings(found, "accuracy_vs_flops"))["recipes"]
    assert [row["kind"] for row in rows] == list(controls)


def test_tables_get_the_accuracy_of_guessing_where_the_task_has_one():
    def rows(**changes):
        return json.loads(table_settings(workflow(**changes), "accuracy_vs_flops"))["recipes"]

    assert not any("chance" in row for row in rows())
    graphs = {"tasks": {"graphs": {"kind": "prosqa"}}, "task": "graphs", "recipes": [["cot"]]}
    assert [row["chance"] for row in rows(**graphs)] == [0.5]


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({"evaluation": {"max_new_tokens": 7}}, True),
        ({"evaluation": {"limit": 7}}, True),
        ({"importance": {"batch_size": 7}}, True),
        ({"evaluation": {"lens": 7}}, False),
        ({"importance": {"rows": 7}}, False),
    ],
)
def test_a_curve_depends_on_what_it_measures(change, rerun):
    settings = [
        found.curve_settings("curve-0", "llama@0+cot") for found in (curving({}), curving({}, **change))
    ]
    assert (settings[0] != settings[1]) == rerun
    value = json.loads(settings[0])
    assert (value["name"], value["node"], value["answers"]) == ("curve-0", "llama@0+cot", "number")
    assert value["curve"]["objectives"] == ["cot"]


def test_metrics_have_a_line_for_each_objective_on_which_they_differ():
    metrics = ["magnitude", "activation", "taylor", "random"]
    changes = {"unit": "neurons", "metrics": metrics, "objectives": ["answer", "cot", "latent"]}
    curve = curving({**changes, "random_seeds": [3, 5]}).curve("curve-0")
    assert [(line.metric, line.objective, line.table, line.seed) for line in curve.lines()] == [
        ("magnitude", None, "answer/passes.parquet", None),
        ("activation", "cot", "cot/passes.parquet", None),
        ("activation", "latent", "latent/passes.parquet", None),
        ("taylor", "answer", "answer/passes.parquet", None),
        ("taylor", "cot", "cot/passes.parquet", None),
        ("taylor", "latent", "latent/passes.parquet", None),
        ("random", None, None, 3),
        ("random", None, None, 5),
    ]
    assert [curve.name_of(line) for line in curve.lines()][:2] == ["magnitude", "activation (cot)"]


def test_a_new_objective_of_all_scores_is_one_of_the_curves_too():
    changed = curving({}, importance={"objective": "answer"})
    assert (
        changed.curve_scores("curve-0", "llama@0+cot")[0]
        == "results/config/scores/llama@0+cot/answer/passes.json"
    )


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (
            {"model": "llama+cto"},
            "model: 'llama+cto' is no recipe or beginning of one (did you mean 'llama+cot'?)",
        ),
        ({"model": "llama@0+cot"}, "model: 'llama@0+cot' is no recipe"),
        ({"model": "llama", "metrics": ["deepest"]}, "model: a base from scratch knows nothing before"),
        ({"model": "llama+cot+kd"}, "model: it ends with icot_kd, whose parts belong to single layers"),
        ({"model": "llama+cot+twice"}, "model: it ends with looped, whose layers are run several times"),
        ({"objectives": ["text"]}, "objectives: there is no text to score on; name it under importance.text"),
    ],
)
def test_a_curve_that_cannot_be_measured_is_refused(curve, message):
    with pytest.raises(CopraError) as caught:
        curving({}, curve)
    assert str(caught.value).startswith(f"config.yaml: curves.curve-1.{message}")


def test_a_model_that_cannot_answer_has_no_curve_by_accuracy():
    bases = {"llama": {"path": "a/llama"}}
    with pytest.raises(
        CopraError, match=r"curve-0\.metrics: 'accuracy' counts right answers, and llama cannot"
    ):
        curving({"model": "llama", "metrics": ["cosine", "accuracy"]}, bases=bases)
    with pytest.raises(CopraError, match=r"curve-0\.objectives: llama was never trained to think"):
        curving({"model": "llama", "objectives": ["latent"]}, bases=bases)
    # One curve for all seeds: nothing in it is drawn.
    assert curving({"model": "llama"}, bases=bases).measured == ["curve-0/llama"]


def test_every_problem_of_every_curve_is_told():
    with pytest.raises(CopraError) as caught:
        curving(
            {"model": "nobody"}, {"objectives": ["text"], "remove": [9]}, importance={"greedy_removals": 4}
        )
    assert len(str(caught.value).split("\n")) == 3


def removals(asked: Workflow, node: str, scoring: str = "layers.greedy_loss", objective: str = "cot"):
    return json.loads(asked.score_settings(node, objective, scoring))["importance"]["greedy_removals"]


def greedy(budget, **changes):
    return {"kind": "prune", "unit": "layers", "metric": "greedy_loss", "budget": budget, **changes}


def test_a_greedy_search_removes_what_those_ask_for_who_use_its_table():
    steps = CONFIG["steps"] | {"one": greedy({"count": 1}), "two": greedy({"count": 2})}
    recipes = [["cot", "one"], ["cot", "two"], ["cot-2", "one"], ["cot-2", "drop", "one"]]
    asked = workflow(steps=steps, recipes=recipes)
    names = ["llama@0+cot", "llama@0+cot-2", "llama@0+cot-2+drop"]
    assert [removals(asked, name) for name in names] == [2, 1, 1]
    curve = CURVE | {"model": "llama+cot-2", "metrics": ["greedy_loss"], "remove": [1, 2]}
    curved = workflow(steps=steps, recipes=recipes, curves={"ours": curve})
    assert [removals(curved, name) for name in names] == [2, 2, 1]
    given = workflow(steps=steps, recipes=recipes[:2], importance={"greedy_removals": 2})
    assert removals(given, "llama@0+cot") == 2


def test_a_greedy_search_for_a_budget_that_is_no_count_removes_all_that_can_go():
    steps = CONFIG["steps"] | {"one": greedy({"count": 1}), "most": greedy({"flops": 0.5})}
    asked = workflow(steps=steps, recipes=[["cot", "one"], ["cot-2", "one"], ["cot-2", "most"]])
    assert [removals(asked, name) for name in ("llama@0+cot", "llama@0+cot-2")] == [1, None]


def test_a_greedy_search_that_finds_fewer_layers_than_are_to_go_is_refused():
    asked = {"importance": {"greedy_removals": 1}}
    with pytest.raises(CopraError, match=r"curve-0\.remove: 'greedy_loss' finds 1 layers and 2 are to go"):
        curving({"metrics": ["greedy_loss"], "remove": [1, 2]}, **asked)
    steps = CONFIG["steps"] | {"two": greedy({"count": 2})}
    with pytest.raises(CopraError, match=r"'two' removes 2 layers, of which the greedy search finds 1"):
        workflow(steps=steps, recipes=[["cot", "two"]], **asked)
