"""The config: what is legal, and what a person reads when something is not."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest

from copra.experiment.config import json_schema, name_of, parse
from copra.experiment.recipes import build_tree
from copra.utils.errors import CopraError
from copra.utils.files import read_yaml
from copra.utils.problems import hint
from helpers.tiny import DROP, tiny_config

ROOT = Path(__file__).parents[2]
SHIPPED = [
    path for path in [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))] if path.is_file()
]
TRAINING = {"steps": 8, "batch_size": 16}
CONTRAST = {"plus": ["llama+cot+drop"], "minus": ["llama+cot"]}
CONFIG = tiny_config(
    steps={
        "cot": {"kind": "cot", "training": TRAINING},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": TRAINING},
        "drop": DROP,
        "ask": {"kind": "few_shot"},
        "codi": {"kind": "codi", "training": TRAINING},
    },
    recipes=[
        ["cot"],
        {"steps": ["cot", "drop"]},
        {"start": ["cot"], "prunings": [[]], "methods": ["coconut"]},
    ],
    latency={},
)
CURVE = {"model": "llama+cot", "unit": "layers", "metrics": ["cosine"], "remove": [1]}


def changed(path, value):
    """The config with one value set, at a path such as `steps.cot.kind` (numbers count in lists)."""
    config = copy.deepcopy(CONFIG)
    node = config
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        node = node[part] if isinstance(node, list) else node.setdefault(part, {})
    node[last] = value
    return config


def problems(config):
    """The lines of the message about a config."""
    with pytest.raises(CopraError) as caught:
        parse(config)
    return str(caught.value).split("\n")


def test_a_legal_config_gets_its_defaults():
    experiment = parse(CONFIG)
    assert experiment.seeds == [0]
    assert experiment.steps["cot"].training.learning_rate == 1e-4
    assert experiment.evaluation.split == "test"
    assert [type(entry).__name__ for entry in experiment.recipes] == ["list", "Recipe", "Product"]
    assert parse({**CONFIG, "latency": None}).latency is None


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("evaluaton", "evaluation"),
        ("tasks.sums.trian", "train"),
        ("bases.llama.pth", "path"),
        ("bases.llama.from_scratch.hiden_size", "hidden_size"),
        ("steps.coconut.max_latent_stag", "max_latent_stage"),
        ("steps.coconut.training.learning_rat", "learning_rate"),
        ("steps.drop.budget.cuont", "count"),
        ("steps.ask.num_fewshots", "num_fewshot"),
        ("steps.codi.training.lora.rnk", "rank"),
        ("steps.codi.auxiliary_decoder.layer", "layers"),
        ("evaluation.max_new_token", "max_new_tokens"),
        ("latency.repetitons", "repetitions"),
        ("recipes.1.stpes", "steps"),
        ("recipes.2.strat", "start"),
    ],
)
def test_a_mistyped_key_is_named_with_its_path_and_the_key_that_was_meant(path, meant):
    assert problems(changed(path, 1)) == [f"config.yaml: {path}: unknown key (did you mean {meant!r}?)"]


def test_an_unknown_key_like_no_other_is_answered_with_all_that_are_legal():
    assert problems(changed("steps.drop.budget.zzz", 1)) == [
        "config.yaml: steps.drop.budget.zzz: unknown key (known: count, flops, fraction, parameters)"
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps.cot.kind", "ctt", "steps.cot.kind: 'ctt' is unknown (did you mean 'cot'?)"),
        (
            "steps.cot",
            {"training": {"steps": 3}},
            "steps.cot.kind: this key is missing (known: coconut, codi, cot, ",
        ),
        ("tasks.sums.kind", "word_sum", "tasks.sums.kind: 'word_sum' is unknown (did you mean 'word_sums'?)"),
        ("steps.cot", None, "steps.cot: should be a mapping of keys to values (got None)"),
        ("tasks.sums.train", -3, "tasks.sums.train: should be greater than 0 (got -3)"),
        ("tasks.sums.train", "many", "tasks.sums.train: should be a whole number (got 'many')"),
        ("steps.cot.training.learning_rate", "x", "learning_rate: should be a number (got 'x')"),
        ("steps.cot.training.epochs", 3, "steps.cot.training: give exactly one of 'steps' and 'epochs'"),
        ("steps.cot.training", {}, "steps.cot.training: give exactly one of 'steps' and 'epochs'"),
        ("evaluation.split", "train", "evaluation.split: should be 'valid' or 'test' (got 'train')"),
        ("bases.llama.path", "gpt2", "bases.llama: give exactly one of 'path' and 'from_scratch'"),
        (
            "bases.llama.from_scratch.heads",
            3,
            "from_scratch: 'hidden_size' 16 is not a multiple of 'heads' 3",
        ),
        ("steps.drop.budget.fraction", 0.5, "steps.drop.budget: give exactly one of 'count', 'fraction', "),
        ("steps.drop.metric", "gates", "steps.drop.metric: 'gates' does not score layers; take one of"),
        ("steps.coconut.overrides", {7: {}}, "steps.coconut.overrides: there is no stage 7, only [0, 1, 2]"),
        (
            "steps.coconut.overrides",
            {1: {"stps": 3}},
            "steps.coconut.overrides: not keys of 'training': stps",
        ),
        (
            "steps.coconut.overrides",
            {1: {"\x1b": 3}},
            "steps.coconut.overrides: not keys of 'training': '\\x1b'",
        ),
        ("steps.drop.unit", ["heads", "neurons"] * 50, "steps.drop.unit: ['heads', 'neurons', "),
        ("steps.coconut.overrides", {1: {"learning_rate": "x"}}, "steps.coconut"),
        ("steps.ask.question", "Q:", "steps.ask.question: needs {question} where the question is to stand"),
        ("steps.ask.stops", ["Q:", ""], "steps.ask.stops.1: should have at least 1 character (got '')"),
        ("steps.ask.training", TRAINING, "steps.ask.training: unknown key"),
        (
            "curves",
            {"a": {**CURVE, "unit": "heads"}},
            "curves.a.metrics: 'cosine' does not score heads; take",
        ),
        (
            "curves",
            {"a": {**CURVE, "metrics": ["cosin"]}},
            "curves.a.metrics.0: should be 'cosine', 'angular'",
        ),
        ("curves", {"a": {**CURVE, "remove": [1, 2, 1]}}, "curves.a.remove: 1 is given twice"),
        ("curves", {"a": {**CURVE, "random_seeds": [4, 4]}}, "curves.a.random_seeds: 4 is given twice"),
        ("curves", {"a": {**CURVE, "objectives": ["cot", "cot"]}}, "objectives: 'cot' is given twice"),
        ("curves", {"a/b": CURVE}, "curves.'a/b': is no name; take letters"),
        ("contrasts", {"a/b": CONTRAST}, "contrasts.'a/b': is no name; take letters"),
        ("contrasts", {"a": {**CONTRAST, "plus": []}}, "contrasts.a.plus: should have at least 1 item"),
        (
            "contrasts",
            {"a": {**CONTRAST, "plus": ["llama+cot", "llama+ask"]}},
            "contrasts.a.plus: has 2 recipes and 'minus' 1, so the contrast of equal recipes would not be 0",
        ),
        (
            "contrasts",
            {"a": {"plus": ["llama+cot"], "minus": ["llama+cot"]}},
            "contrasts.a.plus: 'llama+cot' is in 'minus' too, so it cancels out. Leave it out of both",
        ),
        ("contrasts", {"a": CONTRAST, "A": CONTRAST}, "contrasts.A: differs from 'a' by case alone"),
        ("task", "sms", "task: 'sms' is not in tasks (did you mean 'sums'?)"),
        ("base", "lama", "base: 'lama' is not in bases (did you mean 'llama'?)"),
        ("steps.cot.task", "words", "steps.cot.task: 'words' is not in tasks (known: sums)"),
        ("seeds", [], "seeds: should have at least 1 item, not 0"),
        ("seeds", [1, 2, 1], "seeds: [1, 2, 1] has a seed twice"),
        ("seeds", [2**32], "seeds.0: should be less than or equal to 4294967295 (got 4294967296)"),
        ("seeds", [True], "seeds: should be a number, not true or false (YAML reads yes, no, on"),
        ("steps.cot.training.steps", True, "steps.cot.training.steps: should be a number, not true or false"),
        ("compute.threads", True, "compute.threads: should be a number, not true or false"),
        ("tasks.sums.limit", {"train": True}, "tasks.sums.limit: should be a number, not true or false"),
        ("steps.coconut.overrides", {1: {"steps": True}}, "overrides.1.steps: should be a number, not true"),
        ("steps.coconut.overrides", {True: {}}, "steps.coconut.overrides.True: the key is no text to YAML"),
        ("evaluation.batch_size", "1" + "0" * 300, "evaluation.batch_size: is beyond 2^53"),
        ("steps.cot.training.betas", [0.9, 1], "steps.cot.training.betas.1: should be less than 1 (got 1)"),
        ("steps.cot.training.stop_early", {}, "steps.cot.training.stop_early: give at least one of 'target_"),
        ("steps.coconut.overrides", {1: {"stop_early": {"patience": 0}}}, "overrides.1.stop_early.patience"),
        (
            "steps.gone",
            {"kind": "icot_si", "training": TRAINING, "overrides": {0: {"stop_early": {"patience": 1}}}},
            "steps.gone.overrides.0.stop_early: stage 0 goes through 8 parts over all its steps, so it must "
            "take all of them. Set overrides.0.stop_early to null",
        ),
        (
            "steps.taught",
            {"kind": "icot_kd", "training": {**TRAINING, "stop_early": {"target_accuracy": 0.9}}},
            "steps.taught.training.stop_early: stage 0 makes a model that cannot answer yet, so there is no "
            "accuracy to reach. Set overrides.0.stop_early to null",
        ),
        ("steps.cot.training.warmup_steps", 9, "training.warmup_steps: 9 are more than the 8 steps"),
        ("steps.coconut.overrides", {1: {"warmup_steps": 9}}, "overrides.1.warmup_steps: 9 are more than"),
        (
            "bases.llama.from_scratch.hidden_size",
            12,
            "'hidden_size' 12 over 'heads' 4 is 3 channels",
        ),
        (
            "steps.gone",
            {"kind": "icot_si", "remove_all_beyond": 10**9, "training": TRAINING},
            "steps.gone.remove_all_beyond: makes more than 100 stages. Lower it, or raise tokens_per_stage",
        ),
        ("steps.none", {"kind": "cot", "training": TRAINING}, "steps.none: this name stands for nothing"),
        ("steps.Cot", {"kind": "cot", "training": TRAINING}, "steps.Cot: differs from 'cot' by case alone"),
        ("tasks.Sums", {"kind": "word_sums"}, "tasks.Sums: differs from 'sums' by case alone"),
        ("curves", {"a" * 20: CURVE}, "it ends in 'a' 20 times or more, which Snakemake refuses"),
        ("recipes.0", "cot", "recipes.0: should be a list (got 'cot')"),
        ("recipes.0", {"base": "llama"}, "recipes.0.steps: this key is missing"),
        ("recipes.0", {"prunings": [[]]}, "recipes.0.methods: this key is missing"),
        ("recipes.0", ["c/t"], "recipes.0.0: is no name; take letters"),
        ("recipes.2.prunings", [["a+b"]], "recipes.2.prunings.0.0: is no name; take letters"),
        ("recipes.2.methods", ["a b"], "recipes.2.methods.0: is no name; take letters"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path_and_what_is_allowed(path, value, message):
    (line,) = problems(changed(path, value))
    assert line.startswith("config.yaml: ")
    assert message in line


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"kind": "coconut", "thought": "none", "auxiliary_decoder": {}},
            "auxiliary_decoder: without latents",
        ),
        (
            {"kind": "codi", "iterations": 0, "auxiliary_decoder": {}},
            "auxiliary_decoder: pause tokens (iterations: 0) hold",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_named(step, message):
    (line,) = problems(changed("steps.thinking", {**step, "training": TRAINING}))
    assert line.startswith(f"config.yaml: steps.thinking.{message}")


def test_a_missing_key_is_named():
    for key in ("task", "tasks", "base", "bases", "steps", "recipes"):
        config = {name: value for name, value in CONFIG.items() if name != key}
        assert problems(config) == [f"config.yaml: {key}: this key is missing"]


@pytest.mark.parametrize(
    "value", ["x" * 10**5, ["x" * 99] * 99, {"a": {"b": ["c" * 200] * 200}}], ids=range(3)
)
def test_values_are_cut_at_80_characters_in_messages(value):
    for path in ("task", "steps.cot.kind", "base", "evaluation.limit", "seeds"):
        for line in problems(changed(path, value)):
            told = re.findall(r"got (.*)\)$|: (['{\[].*) is unknown", line)
            assert all(len(text) <= 80 for pair in told for text in pair)
            assert len(line) < 400
    (line,) = problems(changed("k" * 1000, 1))
    assert len(line) < 400


def test_a_hint_lists_names_up_to_a_length():
    names = [f"{letter}{'x' * 50}" for letter in "abcdefgh"]
    assert hint("?", names) == f" (known: {names[0]}, {names[1]}, {names[2]}, ...)"
    assert hint("?", names[:2]) == f" (known: {names[0]}, {names[1]})"


def test_a_list_of_seeds_is_cut_too():
    (line,) = problems(changed("seeds", [*range(10**4), 0]))
    assert len(line) < 120


def test_every_problem_has_a_line_of_its_own():
    config = changed("evaluaton", {})
    config["steps"]["cot"]["training"]["epochs"] = 3
    config["steps"]["drop"]["unit"] = "layer"
    assert len(problems(config)) == 3


@pytest.mark.parametrize("content", [None, [], "text"])
def test_a_config_that_is_no_mapping_is_refused(content):
    assert problems(content) == ["config.yaml: should be a mapping of keys to values"]


@pytest.mark.parametrize("table", ["tasks", "bases", "steps"])
@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".a", "a.", "-a", "a+b", "a@1", "a b", "", "a\n", "$(x)", "a;b", "a'b", "a*", "{a}", "é"],
)
def test_a_name_that_is_no_path_and_shell_word_is_refused(table, name):
    config = copy.deepcopy(CONFIG)
    config[table][name] = next(iter(config[table].values()))
    (line,) = problems(config)
    assert line.startswith(f"config.yaml: {table}.")
    assert "is no name; take letters, digits" in line


@pytest.mark.parametrize("name", ["a", "A-1", "layers_25", "v1.b", "7"])
def test_ordinary_names_are_taken(name):
    config = copy.deepcopy(CONFIG)
    config["steps"][name] = config["steps"]["cot"]
    assert name in parse(config).steps


@pytest.mark.parametrize("file", ["config/llama-3.2-1b.yaml", "llama-3.2-1b.yml"])
def test_an_experiment_without_a_name_is_called_as_its_file(file):
    assert name_of(file) == "llama-3.2-1b"


@pytest.mark.parametrize("stem", ["my config", "-n", "a" * 61])
def test_a_file_that_cannot_name_a_folder_asks_for_a_name(stem):
    with pytest.raises(CopraError, match=rf"^configs/{stem}\.yaml: .*Set `name` in the config\.$"):
        name_of(f"configs/{stem}.yaml")


def test_a_steps_name_that_looks_like_a_stage_is_refused():
    config = copy.deepcopy(CONFIG)
    config["steps"]["cot.1"] = config["steps"]["cot"]
    assert problems(config) == [
        "config.yaml: steps.cot.1: a step's name must not end like a stage, in a dot and digits"
    ]


def test_the_file_is_named_in_each_line():
    with pytest.raises(CopraError, match=r"^mine\.yaml: evaluaton: ") as caught:
        parse(changed("evaluaton", 1), "mine.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_key_is_described_in_the_schema():
    schema = json_schema()
    bare = [
        f"{title}.{key}"
        for title, part in [("Experiment", schema), *schema["$defs"].items()]
        for key, value in part.get("properties", {}).items()
        # A description that is the one of the class referred to is written there only.
        if "description" not in value and "$ref" not in value
    ]
    assert bare == []
    kinds = {"Training", "Coconut", "Prune", "FromScratch", "WordSums", "FewShot", "IcotKd", "Codi", "Lora"}
    assert kinds <= set(schema["$defs"])
    assert all(part.get("description") for part in schema["$defs"].values() if part.get("type") == "object")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_legal(path):
    assert build_tree(parse(read_yaml(path), str(path))).recipes


def test_what_the_snakefile_imports_is_light():
    modules = ("experiment.config", "experiment.recipes", "experiment.workflow", "tasks.prepare")
    heavy = ("torch", "transformers", "datasets", "pandas", "pyarrow", "numpy", "scipy", "matplotlib")
    imports = ", ".join(f"copra.{module}" for module in modules)
    code = f"import sys, {imports}; print(*sorted(set(sys.modules) & {set(heavy)}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_tracking_is_off_unless_a_tracker_is_named():
    assert parse(CONFIG).tracking is None
    assert parse(CONFIG | {"tracking": "tensorboard"}).tracking == "tensorboard"
    with pytest.raises(CopraError, match=r"config.yaml: tracking: .*'tensorboard', 'trackio' or 'wandb'"):
        parse(CONFIG | {"tracking": "mlflow"})


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"select_best_by": "accuracy"}, "select_best_by"),
        ({"stop_early": {"target_accuracy": 0.9}}, "stop_early.target_accuracy"),
    ],
)
def test_sharded_models_answer_no_questions_during_a_training(training, key):
    config = {**changed("steps.cot.training", {**TRAINING, **training}), "compute": {"sharding": True}}
    (line,) = problems(config)
    assert f"steps.cot.training.{key}: with compute.sharding no process has the whole model" in line
