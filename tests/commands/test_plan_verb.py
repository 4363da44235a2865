"""copra plan: its page, and its numbers against those of a run that is made here, command by command."""

import contextlib
import json

import pytest
import yaml

from copra.cli import main
from copra.commands.experiment import merged
from copra.experiment.workflow import Workflow
from copra.plan.forecast import forecast
from copra.plan.page import page
from copra.utils.files import read_json, read_yaml
from copra.utils.quantities import amount, duration

pytestmark = pytest.mark.slow

# 200 rows in batches of 8: an epoch is 25 steps.
TRAINING = {"steps": 25, "batch_size": 8, "learning_rate": 3.0e-3, "num_validations": 1}
CONFIG = {
    "task": "sums",
    "tasks": {"sums": {"kind": "word_sums", "train": 200, "valid": 24, "test": 16}},
    "base": "llama",
    "bases": {
        "llama": {
            "from_scratch": {
                "hidden_size": 16,
                "layers": 3,
                "heads": 4,
                "kv_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 128,
            }
        }
    },
    "steps": {
        "cot": {"kind": "cot", "training": {**TRAINING, "steps": 50}},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "first_stage": 1, "training": TRAINING},
        "lowest": {"kind": "prune", "unit": "layers", "metric": "deepest", "budget": {"count": 1}},
    },
    "recipes": [["cot", "lowest", "coconut"]],
    "evaluation": {"max_new_tokens": 4},
    "latency": None,
}
COT = "llama@0+cot"
PRUNED = f"{COT}+lowest"
MODELS = ("llama@0", COT, PRUNED, f"{PRUNED}+coconut.1", f"{PRUNED}+coconut")


def verb(*arguments):
    assert main(list(map(str, arguments))) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the config and the results of its run, but for the last training and what follows."""
    place = tmp_path_factory.mktemp("plan")
    with contextlib.chdir(place):
        _run(place)
    return place


def _run(place):
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    workflow, results = Workflow(CONFIG, "config.yaml"), place / "results" / "config"
    models, data = results / "models", results / "data" / "sums"
    for split in ("train", "valid", "test"):
        settings = workflow.data_settings("sums", split)
        task = workflow.task_settings("sums")
        verb("data", "--settings", settings, "--task", task, "--output", data / f"{split}.parquet")
    verb(
        *("base", "--settings", workflow.base_settings("llama@0"), "--data", data),
        *("--output", models / "llama@0"),
    )
    train = ("--data", data, "--state", results / "state")
    verb(
        *("train", "--settings", workflow.train_settings(COT), "--parent", models / "llama@0", *train),
        *("--output", models / COT),
    )
    plan = results / "plans" / f"{PRUNED}.json"
    verb(
        *("select", "--settings", workflow.select_settings(PRUNED), "--parent", models / COT),
        *("--output", plan),
    )
    verb(
        *("prune", "--settings", workflow.prune_settings(PRUNED), "--parent", models / COT),
        *("--plan", plan, "--data", data, "--output", models / PRUNED),
    )
    stage = f"{PRUNED}+coconut.1"
    verb(
        *("train", "--settings", workflow.train_settings(stage), "--parent", models / PRUNED, *train),
        *("--output", models / stage),
    )
    verb(
        *("evaluate", "--settings", workflow.evaluate_settings(PRUNED), "--model", models / PRUNED),
        *("--data", data, "--state", results / "state", "--output", results / "evaluations" / PRUNED),
    )
    for job, seconds in ((f"train/{COT}", 37.0), ("data/sums/train", 3600.0)):
        file = results / "benchmarks" / f"{job}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"s\th:m:s\n{seconds}\t1:00:37\n")


@pytest.fixture(scope="module")
def forecasts(place, tmp_path_factory):
    """The forecasts of that run and, in another folder, of one that has not begun."""
    found = {}
    for folder in (place, tmp_path_factory.mktemp("nothing")):
        with contextlib.chdir(folder):
            found[folder == place] = forecast(Workflow(CONFIG, "config.yaml"))
    return found


def test_what_is_there_is_cached(forecasts):
    pages = ("table", "export", "figure", "page")
    lines = forecasts[True].lines
    left = {key for key, line in lines.items() if not line.job.cached and not key.startswith(pages)}
    last = f"{PRUNED}+coconut"
    assert left == {f"train/{last}", f"evaluate/{last}", f"evaluate/{COT}"}
    assert not any(line.job.cached for line in forecasts[False].lines.values())


@pytest.mark.parametrize("there", [True, False])
def test_flops_of_training_are_those_of_the_manifests(place, forecasts, there):
    """Exactly, over whole epochs: fewer steps may read rows of other lengths."""
    for name in (COT, f"{PRUNED}+coconut.1"):
        manifest = read_json(place / "results" / "config" / "models" / name / "copra.json")
        expected = manifest["lineage"][-1]["record"]["flops"]
        training = forecasts[there].lines[f"train/{name}"].training
        assert training == (pytest.approx(expected, rel=1e-9),) * 2


@pytest.mark.parametrize("there", [True, False])
def test_flops_of_evaluation_are_those_of_the_metrics(place, forecasts, there):
    """All answers reach the limit, as they do for a right one."""
    metrics = read_json(place / "results" / "config" / "evaluations" / PRUNED / "metrics.json")
    expected = metrics["flops"]["total"] * metrics["n"]
    assert forecasts[there].lines[f"evaluate/{PRUNED}"].flops == (pytest.approx(expected, rel=1e-6),) * 2


@pytest.mark.parametrize("there", [True, False])
def test_disk_is_that_of_the_files(place, forecasts, there):
    """But for the table of contents of a file and, before the run, for norms."""
    for name in MODELS[:-1]:
        kind = "base" if name == "llama@0" else "prune" if name == PRUNED else "train"
        weights = (place / "results" / "config" / "models" / name / "model.safetensors").stat().st_size
        assert weights - 5000 < forecasts[there].lines[f"{kind}/{name}"].disk[0] <= weights


def test_measured_seconds_count_as_they_are_and_only_of_training_for_others(forecasts):
    found = forecasts[True]
    assert found.lines[f"train/{COT}"].seconds == (37.0, 37.0)
    assert found.lines["data/sums/train"].seconds == (3600.0, 3600.0)
    factor = found.machine.factors["train"]
    assert found.machine.factors == {"train": factor, "": factor}
    last, nominal = (
        found.lines[f"train/{PRUNED}+coconut"],
        forecasts[False].lines[f"train/{PRUNED}+coconut"],
    )
    assert last.seconds[0] == pytest.approx(factor * nominal.seconds[0], rel=0.01)


def test_the_longest_chain_is_that_of_the_tree(forecasts):
    seconds, chain = forecasts[True].longest_chain()
    assert [job.rule for job in chain] == ["train", "evaluate", "table", "figure", "page"]
    assert seconds == pytest.approx(sum(forecasts[True].lines[job.key].seconds[0] for job in chain))
    _, whole = forecasts[False].longest_chain()
    assert [job.key for job in whole[1:4]] == ["base/llama@0", f"train/{COT}", f"select/{PRUNED}"]


def test_the_page(forecasts):
    text = page(forecasts[True], Workflow(CONFIG, "config.yaml"), "config.yaml")
    assert text.startswith(
        "config.yaml: 1 recipes, 5 models (1 base, 3 train, 1 prune)\n19 jobs: 9 cached, 10 to run\n"
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "3", "2", "1"] in [line[:4] for line in lines]
    assert ["coconut.1", "1", "1", "25"] in [line[:4] for line in lines]
    (memory,) = [line for line in text.splitlines() if line.startswith("Peak memory of a training: ")]
    assert memory.endswith("B in each process.")
    assert ["coconut", ">", "evaluate", ">", "table", ">", "figure", ">", "page"] in lines


def test_the_command_on_a_machine_that_is_given(place, forecasts, capsys, monkeypatch):
    """A million times as slow: hours are those of the FLOPs, and no measured time changes that."""
    monkeypatch.chdir(place)
    verb("plan", "--flops-per-second", "1e5", "--utilization", "1")
    text = capsys.readouterr().out
    (row,) = [line.split() for line in text.splitlines() if line.startswith("coconut ")]
    flops = sum(forecasts[True].lines[f"{rule}/{PRUNED}+coconut"].flops[0] for rule in ("train", "evaluate"))
    assert flops / 1e5 / 60 < float(row[8]) < 1.1 * flops / 1e5 / 60
    assert row[9] == "min"
    assert "1 CPU thread(s) per training: 1e+05 FLOPs per second" in text
    assert main(["plan", "--utilization", "0"]) == 1


def test_of_a_base_that_is_not_known_only_counts_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    config = {**CONFIG, "bases": {"llama": {"path": "somebody/some-model"}}}
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(config))
    verb("plan", "hub.yaml")
    text = capsys.readouterr().out
    assert "5 models (1 base, 3 train, 1 prune)" in text
    assert "the sizes of a base are not known before" in text
    assert "`hf download somebody/some-model config.json`" in text
    assert "snakemake results/hub/models/llama/copra.json" in text
    assert "To run:" not in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("cot ")]
    assert line == ["cot", "1", "0", "50", *["?"] * 5]


def test_several_configs_are_merged_as_snakemake_does(tmp_path, capsys, monkeypatch):
    from snakemake.utils import update_config

    monkeypatch.chdir(tmp_path)
    one, two = CONFIG, {"seeds": [0, 1], "tasks": {"sums": {"train": 100}}}
    two["steps"] = {"coconut": {"overrides": {1: {"steps": 3}}}}
    for name, config in (("one", one), ("two", two)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    expected = json.loads(json.dumps(one))
    update_config(expected, two)
    assert merged(read_yaml(tmp_path / "one.yaml"), read_yaml(tmp_path / "two.yaml")) == expected
    verb("plan", "one.yaml", "--merged", json.dumps(expected))
    text = capsys.readouterr().out
    assert text.startswith("one.yaml: 1 recipes, 10 models")
    (line,) = [line.split() for line in text.splitlines() if line.startswith("coconut.1 ")]
    assert line[:4] == ["coconut.1", "2", "0", "3"]


def test_what_snakemake_cannot_plan_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(("train", "test"), "nowhere.jsonl")
    config = {**CONFIG, "tasks": {"sums": {"kind": "gsm8k", "source": "files", **files}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["plan"]) == 1
    told = capsys.readouterr().err
    assert "tasks.sums: nowhere.jsonl is not there. Correct the path, or fetch the file." in told
    assert "Traceback" not in told


def test_amounts_and_times_are_told_for_people():
    assert [amount(value, "FLOPs") for value in (0, 950, 15.91e12, 893.4e9, 2e18)] == [
        "0 FLOPs",
        "950 FLOPs",
        "15.9 TFLOPs",
        "893 GFLOPs",
        "2 EFLOPs",
    ]
    assert [duration(value) for value in (0, 59.6, 119, 150, 1500, 7200, 90000, 3e6)] == [
        "0 s",
        "60 s",
        "119 s",
        "2.5 min",
        "25 min",
        "2.0 h",
        "25 h",
        "35 d",
    ]
