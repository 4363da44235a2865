"""Whole runs of Snakemake: undisturbed, killed and taken up again, and with jobs that fail."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from copra.files import file_sha256, read_json, read_parquet
from copra.fingerprint import closure

pytestmark = pytest.mark.workflow

HEAVY = ("torch", "transformers", "datasets", "accelerate", "pandas", "pyarrow", "scipy", "matplotlib")
TRAINED = (
    "llama@0+cot",
    "llama@0+cot+no_cot",
    "llama@0+cot+layers-1+groups-1+coconut.0",
    "llama@0+cot+layers-1+groups-1+coconut.1",
    "llama@0+cot+layers-1+groups-1+coconut",
)


def test_a_run_makes_every_table_and_figure(finished):
    results = finished.folder / "results"
    tables = {path.name for path in (results / "tables").iterdir()}
    assert tables == {
        f"{name}.{kind}"
        for name in ("accuracy_vs_flops", "before_fine_tuning")
        for kind in ("parquet", "csv", "md", "tex")
    }
    figures = {str(path.relative_to(results / "figures").with_suffix("")) for path in results.rglob("*.svg")}
    assert figures == {
        "accuracy_vs_flops",
        "training_curves",
        "curriculum",
        "layer_distances/llama@0+cot",
        "head_importance/llama@0+cot+layers-1",
    }
    table = read_parquet(results / "tables" / "accuracy_vs_flops.parquet")
    assert list(table["recipe"]) == ["llama+cot", "llama+cot+no_cot", "llama+cot+layers-1+groups-1+coconut"]
    assert (table["n"] == 60).all()
    assert table["seconds_batch_1"].gt(0).all()


def test_a_run_leaves_no_states_and_no_temporary_files(finished):
    assert list((finished.folder / "results" / "state").iterdir()) == []
    assert [path for path in finished.folder.rglob("*") if ".tmp-" in path.name] == []


def test_lineage_and_parents_are_those_of_the_recipe(finished):
    models = finished.folder / "results" / "models"
    manifest = read_json(models / TRAINED[-1] / "copra.json")
    assert [entry["step"] for entry in manifest["lineage"]] == [
        "cot",
        "layers-1",
        "groups-1",
        "coconut.0",
        "coconut.1",
        "coconut",
    ]
    parent = read_json(models / TRAINED[-2] / "copra.json")
    assert manifest["lineage"][-1]["parent"] == parent["weights"]["sha256"]


def test_the_fingerprint_covers_all_modules_that_a_verb_imports(finished):
    audits = {folder.name: list(folder.iterdir()) for folder in (finished.code / "src" / "audit").iterdir()}
    assert set(audits) == {
        *("data", "base", "train", "score", "plan", "prune"),
        *("evaluate", "latency", "table", "export", "figure"),
    }
    for verb, notes in audits.items():
        imported = {name for note in notes for name in note.read_text().split()}
        assert f"copra.verbs.{verb}" in imported
        assert imported - {"copra.cli"} <= closure(f"copra.verbs.{verb}"), verb


def test_a_second_run_has_nothing_to_do(run):
    assert "Nothing to be done" in run.snakemake()


def test_parsing_the_workflow_imports_nothing_heavy(edited):
    for name in HEAVY:
        (edited.code / "src" / name).mkdir()
        (edited.code / "src" / name / "__init__.py").write_text(f"raise ImportError('{name} is heavy')")
    assert edited.would_run() == set()
    edited.configure(task="words", tasks__words={"kind": "word_sums", "seed": 3})
    assert len(edited.would_run()) > 20


def kill_in_a_training(run) -> str:
    """Start a run and kill it, children and all, once a training has saved a state; returns its model."""
    process = subprocess.Popen(
        **run.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    results = run.folder / "results"
    try:
        deadline = time.monotonic() + 300
        while not list(results.glob("state/*/step-*")):
            assert process.poll() is None, "the run ended before a training had saved a state"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    running = [name for name in TRAINED if (results / "logs" / "train" / f"{name}.log").is_file()]
    (cut,) = [name for name in running if not (results / "models" / name / "copra.json").is_file()]
    return cut


def assert_whole(results: Path) -> None:
    """Everything that is there is complete."""
    for manifest in results.rglob("copra.json"):
        if ".tmp-" not in manifest.parent.name:
            weights = read_json(manifest)["weights"]
            assert file_sha256(manifest.parent / "model.safetensors") == weights["sha256"]
    for path in results.rglob("*.parquet"):
        read_parquet(path)
    for path in results.glob("evaluations/*/metrics.json"):
        assert read_json(path)["n"] == 60


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(finished, tmp_path):
    """Two runs of one config are equal to the byte, though one of them was killed in a training."""
    run = type(finished)(tmp_path, finished.code)
    run.configure(compute__save_every_seconds=0)
    cut = kill_in_a_training(run)
    assert_whole(run.folder / "results")
    assert "--unlock" in run.snakemake(succeeds=False)  # Snakemake cannot tell a kill from a second run.
    run.snakemake("--unlock")
    run.snakemake()
    assert "going on after step" in (run.folder / "results" / "logs" / "train" / f"{cut}.log").read_text()
    assert_whole(run.folder / "results")

    first, second = finished.folder / "results", run.folder / "results"
    measured = ("latency.parquet", "tables/accuracy_vs_flops.")
    compared = [
        path
        for path in sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
        if not path.startswith(("logs/", "benchmarks/", *measured))
    ]
    assert len(compared) > 80
    assert [path for path in compared if file_sha256(first / path) != file_sha256(second / path)] == []
    tables = [read_parquet(folder / "tables" / "accuracy_vs_flops.parquet") for folder in (first, second)]
    times = [column for column in tables[0] if column.startswith("seconds")]
    assert len(times) == 2
    assert tables[0].drop(columns=times).equals(tables[1].drop(columns=times))


def test_a_training_that_breaks_down_fails_with_its_message(run):
    run.configure(steps__no_cot__training__learning_rate=1.0e9)
    printed = run.snakemake("results/models/llama@0+cot+no_cot/copra.json", succeeds=False)
    assert "copra train: step" in printed
    assert "the training has broken down" in printed
    assert "Traceback" not in printed
    assert not (run.folder / "results" / "models" / "llama@0+cot+no_cot" / "copra.json").exists()


def test_a_cut_data_file_fails_with_its_message(run):
    data = run.folder / "results" / "data" / "sums" / "train.parquet"
    data.write_bytes(data.read_bytes()[:-100])
    printed = run.snakemake("results/models/llama@0+cot+no_cot/copra.json", succeeds=False)
    assert "results/data/sums/train.parquet: not a whole Parquet file" in printed
    assert "Traceback" not in printed


def test_cut_weights_fail_with_their_message(run):
    weights = run.folder / "results" / "models" / "llama@0+cot" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (run.folder / "results" / "evaluations" / "llama@0+cot" / "metrics.json").unlink()
    printed = run.snakemake("results/evaluations/llama@0+cot/metrics.json", succeeds=False)
    assert "model.safetensors: not the file that" in printed
    assert "Traceback" not in printed


def test_what_is_optional_may_be_left_out(run):
    """A pruning without scores, and a table without measured times."""
    recipes = [["cot"], ["cot", "lowest-1", "no_cot"]]
    run.configure(recipes=recipes, latency=None)
    plan = "results/plans/llama@0+cot+lowest-1.json"
    run.snakemake(plan)
    assert read_json(run.folder / plan)["removed"]
    run.configure(recipes=recipes[:1], latency=None)
    table = "results/tables/accuracy_vs_flops"
    run.snakemake(f"{table}.csv")
    frame = read_parquet(run.folder / f"{table}.parquet")
    assert list(frame["recipe"]) == ["llama+cot"]


def test_the_workflow_passes_snakemakes_own_lint(finished):
    assert "in a good condition" in finished.snakemake("--lint")


def test_faults_of_the_config_are_told_line_by_line(run):
    run.configure(evaluaton=1, steps__cot__training__stps=3)
    printed = run.snakemake("-n", succeeds=False)
    assert "\nconfig.yaml: evaluaton: unknown key (did you mean 'evaluation'?)\n" in printed
    assert "\nconfig.yaml: steps.cot.training.stps: unknown key (did you mean 'steps'?)\n" in printed
    assert "Traceback" not in printed


def test_a_key_given_twice_is_refused(run):
    path = run.folder / "config.yaml"
    path.write_text(path.read_text() + "seeds: [1]\nseeds: [2]\n")
    assert "key 'seeds' is given twice" in run.snakemake("-n", succeeds=False)


def test_a_config_file_on_the_command_line_stands_alone(run):
    config = json.loads(json.dumps({"task": "none"}))
    (run.folder / "other.yaml").write_text(json.dumps(config))
    printed = run.snakemake("-n", "--configfile", str(run.folder / "other.yaml"), succeeds=False)
    assert "other.yaml: recipes: this key is missing" in printed
