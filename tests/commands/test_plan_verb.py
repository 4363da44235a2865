"""copra plan: its page, and its FLOPs against those of a run that is made here, verb by verb."""

import json
import subprocess
import sys

import pytest
import yaml

from copra.cli import main
from copra.commands.experiment import merged
from copra.experiment.workflow import Workflow
from copra.plan.forecast import forecast
from copra.plan.page import amount, duration
from copra.utils.files import read_json, read_yaml

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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory for what a workflow computes of files and keeps."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the config and the results of its run, but for the last training and what follows."""
    place = tmp_path_factory.mktemp("plan")
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    workflow, results = Workflow(CONFIG, "config.yaml"), place / "results" / "config"
    models, data = results / "models", results / "data" / "sums"
    verb("data", "--settings", "{}", "--task", workflow.task_settings("sums"), "--output", data)
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
        *("choose", "--settings", workflow.choose_settings(PRUNED), "--parent", models / COT),
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
    (results / "benchmarks" / "train").mkdir(parents=True)
    (results / "benchmarks" / "train" / f"{COT}.tsv").write_text("s\th:m:s\n37.0\t0:00:37\n")
    return place


@pytest.fixture
def told(place):
    """The forecast of that run."""
    return forecast(Workflow(CONFIG, "config.yaml"), place / "results" / "config")


def test_what_is_there_is_cached(told):
    pages = ("table", "export", "figure")
    left = {key for key, line in told.lines.items() if not line.made and not key.startswith(pages)}
    last = f"{PRUNED}+coconut"
    assert left == {f"train/{last}", f"evaluate/{last}", f"evaluate/{COT}"}


@pytest.mark.parametrize("there", [True, False])
def test_flops_of_training_are_those_of_the_manifests(place, there):
    """To 2 percent after the run, and to 5 percent before it, over whole epochs. Fewer steps may read other
    rows, as those of a batch are of similar length."""
    results = place / "results" / "config"
    told = forecast(Workflow(CONFIG, "config.yaml"), results if there else place / "nothing")
    for name in (COT, f"{PRUNED}+coconut.1"):
        record = read_json(results / "models" / name / "copra.json")["lineage"][-1]["record"]
        found = told.lines[f"train/{name}"].learning
        assert found == pytest.approx(record["flops"], rel=0.02 if there else 0.05)


def test_flops_of_evaluation_are_those_of_the_metrics(place, told):
    """All answers reach the limit, as they do for a right one."""
    metrics = read_json(place / "results" / "config" / "evaluations" / PRUNED / "metrics.json")
    expected = metrics["flops"]["total"] * metrics["n"]
    assert told.lines[f"evaluate/{PRUNED}"].flops == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("there", [True, False])
def test_disk_is_that_of_the_files(place, there):
    """But for the table of contents of a file."""
    told = forecast(
        Workflow(CONFIG, "config.yaml"), place / "results" / "config" if there else place / "nothing"
    )
    for name in MODELS[:-1]:
        kind = "base" if name == "llama@0" else "prune" if name == PRUNED else "train"
        weights = (place / "results" / "config" / "models" / name / "model.safetensors").stat().st_size
        found = told.lines[f"{kind}/{name}"].bytes
        assert weights - 4000 < found <= weights


def test_measured_seconds_count_as_they_are(told):
    assert told.lines[f"train/{COT}"].seconds == 37.0
    assert set(told.clock.factors) == {"train", ""}


def test_the_longest_chain_is_that_of_the_tree(told):
    seconds, chain = told.longest_chain(lambda line: not line.made)
    assert [job.verb for job in chain] == ["train", "evaluate", "table", "figure"]
    assert seconds == pytest.approx(sum(told.lines[job.key].seconds for job in chain))
    _, whole = told.longest_chain(lambda line: True)
    first = ["data/sums/train", "base/llama@0", f"train/{COT}", f"choose/{PRUNED}"]
    assert [job.key for job in whole[:4]] == first


def test_the_page(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    verb("plan")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "config.yaml:",
        "1",
        "recipes,",
        "5",
        "models",
        "(1",
        "base,",
        "3",
        "train,",
        "1",
        "prune)",
    ] in lines
    assert ["train", "3", "2", "1"] in [line[:4] for line in lines]
    assert ["coconut.1", "1", "1"] in [line[:3] for line in lines]
    assert [line for line in lines if line[:2] == ["Longest", "chain:"]]
    assert ["coconut", ">", "evaluate", ">", "table", ">", "figure"] in lines


def test_a_machine_that_is_given(place, capsys):
    """A million times as slow: hours are those of the FLOPs, and no measured time changes that."""
    options = ("--results", place / "results" / "config", "--flops-per-second", "1e5", "--utilization", "1")
    verb("plan", place / "config.yaml", *options)
    text = capsys.readouterr().out
    told = forecast(Workflow(CONFIG, "config.yaml"), place / "results" / "config", 1e5, 1.0)
    line = told.lines[f"train/{PRUNED}+coconut"]
    assert line.seconds == pytest.approx(line.flops / 1e5, rel=0.01)
    assert told.clock.factors == {}
    assert "1 CPU thread(s) a training: 1e+05 FLOPs per second" in text
    assert main(["plan", str(place / "config.yaml"), "--utilization", "0"]) == 1


def test_of_a_base_that_is_not_known_only_counts_are_told(place, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "no cache"))
    config = {**CONFIG, "bases": {"llama": {"path": "somebody/some-model"}}}
    (place / "hub.yaml").write_text(yaml.safe_dump(config))
    verb("plan", place / "hub.yaml", "--results", place / "nothing")
    text = capsys.readouterr().out
    assert "5 models (1 base, 3 train, 1 prune)" in text
    assert "the sizes of a base are not known before" in text
    assert "`hf download somebody/some-model config.json`" in text
    assert "snakemake results/hub/models/llama/copra.json" in text
    assert "To run:" not in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("cot ")]
    assert line == ["cot", "1", "0", "50", "?", "?", "?", "?"]


def test_several_configs_are_merged_as_snakemake_does(place, capsys):
    (place / "more.yaml").write_text("seeds: [0, 1]\ntasks: {sums: {train: 100}}\n")
    verb("plan", place / "config.yaml", place / "more.yaml", "--results", place / "nothing")
    assert "10 models" in capsys.readouterr().out
    from snakemake.utils import update_config

    one, two = read_yaml(place / "config.yaml"), read_yaml(place / "more.yaml")
    expected = json.loads(json.dumps(one))
    update_config(expected, two)
    assert merged(one, two) == expected
    verb("plan", "--merged", json.dumps(expected), "--results", place / "nothing")
    assert "10 models" in capsys.readouterr().out


def test_planning_imports_nothing_heavy(place):
    """Before a run and after one."""
    heavy = {"torch", "transformers", "datasets", "pandas", "scipy", "matplotlib", "snakemake"}
    code = (
        "import sys; from copra.cli import main; main(sys.argv[1:])\n"
        f"print('heavy:', *sorted(set(sys.modules) & {heavy}))"
    )
    for results in (place / "results" / "config", place / "nothing"):
        for name in ("plan", "status"):
            command = [sys.executable, "-c", code, name, place / "config.yaml", "--results", results]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
            assert done.stdout.splitlines()[-1] == "heavy:"
            assert len(done.stdout.splitlines()) > 2


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
