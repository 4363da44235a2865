"""Snakemake's runs of the tiny experiment: whole, again, killed and taken up again, and failing."""

import base64
import json
import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

COT = "llama@0+cot"
NO_COT = f"{COT}+no_cot"
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "scipy")


def files(run, *kinds):
    """The bytes of all files below these folders of results, by path."""
    folders = [run.results / kind for kind in kinds]
    return {
        str(path.relative_to(run.results)): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_makes_all_tables_and_figures(finished):
    names = set(files(finished, "tables", "figures"))
    tables = {
        f"tables/{table}.{kind}"
        for table in ("accuracy_vs_flops", "before_fine_tuning")
        for kind in ("parquet", "csv", "md", "tex")
    }
    figures = {
        f"figures/{figure}.{kind}"
        for figure in (
            "accuracy_vs_flops",
            "training_curves",
            "curriculum",
            *(
                f"{kind}/{node}/cot"
                for kind in ("layer_distances", "head_importance")
                for node in (COT, f"{COT}+drop-1")
            ),
        )
        for kind in ("svg", "png")
    }
    assert names == tables | figures
    text = (finished.results / "tables" / "accuracy_vs_flops.csv").read_text()
    for recipe in ("llama+cot,", "llama+cot+no_cot,", "llama+cot+drop-1+groups-1+coconut,"):
        assert recipe in text


def test_the_report_shows_all_tables_and_figures(finished):
    text = (finished.results / "report.html").read_text()
    pictures = sorted(finished.results.glob("figures/**/*.svg"))
    assert len(pictures) == text.count("<img ") == 7
    for file in pictures:
        assert base64.b64encode(file.read_bytes()).decode() in text
    for recipe in ("llama+cot", "llama+cot+no_cot", "llama+cot+drop-1+groups-1+coconut"):
        assert f'title="{recipe}"' in text
    assert "Accuracy right after pruning" in text  # a table without a figure
    assert "snakemake --configfile config.yaml" in text
    assert "torch " in text
    assert "max_latent_stage: 1" in text  # the config


def test_a_run_ends_with_its_finding(run):
    compared = [["cot", "drop-1", "no_cot"], ["cot", "drop-1", "coconut"]]
    run.configure(recipes=[["cot"], *compared])
    printed = run.snakemake("--quiet", "rules", "host")
    (finding,) = [line for line in printed.splitlines() if line.startswith("One seed, no claim: ")]
    assert finding.endswith(" points with 1 of 2 layers.")
    written = (run.results / "tables" / "accuracy_vs_flops.md").read_text()
    assert written.splitlines()[-1] == finding
    # A dry run has found nothing.
    assert finding not in run.snakemake("-n")


def test_a_run_leaves_nothing_temporary_and_a_log_for_every_job(finished):
    names = [path.name for path in finished.results.rglob("*")]
    assert not [name for name in names if ".tmp-" in name]
    assert not list((finished.results / "state").glob("*"))
    logs, benchmarks = (
        {re.sub(r"\.[a-z]+$", "", name).split("/", 1)[1] for name in files(finished, kind)}
        for kind in ("logs", "benchmarks")
    )
    assert logs == benchmarks
    assert len(logs) == 34


def test_a_second_run_has_nothing_to_do_and_imports_nothing_heavy(finished):
    printed = finished.snakemake("-n", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert "Nothing to be done" in printed
    imported = {line.rsplit("|", 1)[-1].strip() for line in printed.splitlines() if "import time:" in line}
    assert {"snakemake", "copra.experiment.workflow"} <= imported
    assert not imported & set(HEAVY)


def test_a_manifest_tells_the_whole_way_to_a_model(finished):
    node = f"{COT}+drop-1+groups-1+coconut"
    manifest = json.loads((finished.results / "models" / node / "copra.json").read_text())
    steps = [done["step"] for done in manifest["lineage"]]
    assert steps == ["cot", "drop-1", "groups-1", "coconut.0", "coconut.1", "coconut"]
    parents = [done["parent"] for done in manifest["lineage"]]
    names = ["llama@0", COT, f"{COT}+drop-1", f"{COT}+drop-1+groups-1", f"{node}.0", f"{node}.1"]
    for name, parent in zip(names, parents, strict=True):
        own = json.loads((finished.results / "models" / name / "copra.json").read_text())
        assert own["weights"]["sha256"] == parent


APPTAINER = """#!/bin/sh
[ "$1" = --version ] && echo apptainer version 1.3.4 && exit
echo "$@" >> "$CALLS"
for last; do :; done
exec bash -c "$last"
"""


@pytest.fixture
def apptainer(tmp_path):
    """The environment of runs that find an Apptainer which notes its calls and isolates nothing."""
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER)
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


def test_jobs_run_in_the_image_that_is_asked_for(run, apptainer, tmp_path):
    (run.results / "tables" / "before_fine_tuning.csv").unlink()
    asked = ("--software-deployment-method", "apptainer", "--apptainer-args=--nv")
    image = {"COPRA_CONTAINER": str(tmp_path / "own.sif")}
    run.snakemake("results/config/tables/before_fine_tuning.csv", *asked, environment=apptainer | image)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert re.search(rf" --nv .*{tmp_path}/own.sif bash -c .*copra export ", call)
    assert (run.results / "tables" / "before_fine_tuning.csv").exists()


@pytest.mark.parametrize("image", [None, "docker://registry.example.org/copra:0.2"])
def test_an_image_makes_nothing_run_again(finished, apptainer, image):
    environment = apptainer | ({"COPRA_CONTAINER": image} if image else {})
    printed = finished.snakemake("-n", "--software-deployment-method", "apptainer", environment=environment)
    assert "Nothing to be done" in printed


def kill_in_training(run):
    """Start a run and kill Snakemake alone with SIGKILL once a training has saved a state."""
    process = subprocess.Popen(
        **run.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 300
        while not list(run.results.glob("state/*/step-*")):
            assert process.poll() is None, "the run ended before a training had saved a state"
            assert time.monotonic() < end
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    # The job, its shell and the process that it is a fork of follow at once.
    assert ended(process.pid)


def ended(session):
    """True once no process of a session is left."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not [pid for pid in psutil.pids() if session_of(pid) == session]:
            return True
        time.sleep(0.01)
    return False


def session_of(pid):
    with suppress(ProcessLookupError):
        return os.getsid(pid)


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory):
    """The same experiment in another folder, killed in the first training; its own files, for reading.

    Its jobs are forks of a server of its own, as those of users are.
    """
    run = replace(finished.empty(tmp_path_factory.mktemp("killed") / "run"), environment={})
    run.configure(compute__save_every_seconds=0)
    kill_in_training(run)
    return run.copied(run.folder.with_name("as killed")), run


@pytest.fixture(scope="module")
def resumed(killed):
    """The killed run after it was run again to its end, with another seed of hashes than the finished one."""
    run = killed[1]
    process = subprocess.Popen(
        **run.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )
    printed, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, printed
    assert "The lock of a run that was killed is removed." in printed
    assert ended(process.pid)
    return run


def test_a_kill_in_a_training_leaves_its_state_and_nothing_that_passes_for_a_result(killed):
    as_killed, _ = killed
    assert not list(as_killed.results.glob(f"models/{COT}/*"))
    assert list(as_killed.results.glob("state/*/step-*/state.json"))
    assert not list(as_killed.results.glob("evaluations/*/*"))
    left = as_killed.would_run()
    assert {
        f"Training {COT}",
        f"Evaluating {COT}",
        "Drawing figure training_curves: the training curves",
    } <= left
    assert not {"Preparing the train split of task sums", "Making base model llama@0"} & left


def test_a_killed_training_goes_on_from_its_state(resumed):
    assert "going on after step" in (resumed.results / "logs" / "train" / f"{COT}.log").read_text()
    assert not list((resumed.results / "state").glob("*"))


@pytest.mark.parametrize("kind", ["data", "models", "scores", "plans", "evaluations", "tables", "figures"])
def test_two_runs_in_two_folders_give_the_same_bytes_even_if_one_was_killed(finished, resumed, kind):
    expected, found = files(finished, kind), files(resumed, kind)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_training_that_breaks_down_fails_with_its_reason(run):
    run.configure(steps__no_cot__training__learning_rate=1e9)
    target = f"results/config/models/{NO_COT}/copra.json"
    printed = run.snakemake(target, succeeds=False)
    assert "copra train: step 2: loss" in printed
    assert "Lower training.learning_rate" in printed
    assert "Traceback" not in printed
    assert not (run.folder / target).exists()
    run.configure()
    assert f"Training {NO_COT}" in run.would_run()


def test_data_that_was_cut_short_fails_with_its_name(run):
    data = run.results / "data" / "sums" / "train.parquet"
    data.write_bytes(data.read_bytes()[:-100])
    manifest = "results/config/models/llama@0/copra.json"
    (run.folder / manifest).unlink()
    printed = run.snakemake(manifest, succeeds=False)
    assert (
        "copra base: results/config/data/sums/train.parquet: not the file that train.json was written for"
        in printed
    )
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate", "learning_rat", "config.yaml: steps.cot.training.learning_rat: unknown key"),
        ("task: sums", "task: sums\ntask: sums", "key 'task' is given twice (first on line 1)"),
    ],
)
def test_a_problem_in_the_config_is_a_message(finished, tmp_path, old, new, message):
    empty = finished.empty(tmp_path / "run")
    empty.configure()
    config = empty.folder / "config.yaml"
    config.write_text(config.read_text().replace(old, new, 1))
    printed = empty.snakemake("-n", succeeds=False)
    assert message in printed
    assert "Traceback" not in printed
