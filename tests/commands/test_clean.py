"""copra clean: what it lists and removes of folders as runs leave them, and what it leaves alone."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
import yaml

from copra.cli import main
from copra.plan import leftovers
from copra.utils import heartbeat as watch
from copra.utils.locking import hold
from helpers.tiny import DROP, tiny_config

pytestmark = pytest.mark.slow

CONFIG = tiny_config(
    name="tiny",
    tasks__longer={"kind": "word_sums", "train": 1, "valid": 1, "test": 8, "min_steps": 5},
    steps__lean=DROP,
    recipes=[["cot"], ["cot", "lean"]],
    importance={"objective": "cot"},
    evaluation={"tasks": ["longer"]},
)
NEEDED = (
    "data/sums/train.parquet",
    "models/llama@0/copra.json",
    "models/llama@0+cot/copra.json",
    "models/llama@0+cot/training.jsonl",
    "models/llama@0+cot+lean/model.safetensors",
    "scores/llama@0+cot/cot/passes.json",
    "scores/llama@0+cot/cot/passes.parquet",
    "plans/llama@0+cot+lean.json",
    "evaluations/llama@0+cot/metrics.json",
    "evaluations/llama@0+cot/predictions.parquet",
    "evaluations/longer/llama@0+cot+lean/predictions.parquet",
    "data/longer/test.parquet",
    "logs/evaluate/longer/llama@0+cot+lean.log",
    "tables/accuracy_by_task.csv",
    "tables/accuracy_vs_flops.tex",
    "tables/before_fine_tuning.md",
    "figures/accuracy_vs_flops.png",
    "figures/layer_distances/llama@0+cot/cot.svg",
    "logs/train/llama@0+cot.log",
    "logs/plan.log",
    "benchmarks/score/llama@0+cot/cot/passes.tsv",
    "tracking/llama@0+cot/events",
    # Not copra's, or of no kind that it knows.
    "notes.txt",
    "report.html",
    "mine/llama@0+old/copra.json",
    # A job that was killed left it, and the next one takes it away.
    "models/.llama@0+cot.tmp-123/config.json",
)
LEFT_OVER = {
    "data/other/train.parquet": "data/other",
    "models/llama@0+old/copra.json": "models/llama@0+old",
    "models/llama@0+old/model.safetensors": "models/llama@0+old",
    "models/.llama@0+old.tmp-123/config.json": "models/.llama@0+old.tmp-123",
    "scores/llama@0+cot/answer/passes.parquet": "scores/llama@0+cot/answer",
    "scores/llama@0+cot/cot/heads.gates.parquet": "scores/llama@0+cot/cot/heads.gates.parquet",
    "scores/llama@0+cot/cot/heads.gates.json": "scores/llama@0+cot/cot/heads.gates.json",
    "plans/llama@0+old.json": "plans/llama@0+old.json",
    "curves/layers/llama@0.parquet": "curves",
    "evaluations/llama@0+cot/latents.parquet": "evaluations/llama@0+cot/latents.parquet",
    "evaluations/other/llama@0+cot/metrics.json": "evaluations/other",
    "evaluations/longer/llama@0+old/metrics.json": "evaluations/longer/llama@0+old",
    "latency.parquet": "latency.parquet",
    "tables/latent_lens.csv": "tables/latent_lens.csv",
    "figures/curriculum.svg": "figures/curriculum.svg",
    "logs/train/llama@0+old.log": "logs/train/llama@0+old.log",
    "benchmarks/train/llama@0+old.tsv": "benchmarks/train/llama@0+old.tsv",
    "tracking/llama@0+old/events": "tracking/llama@0+old",
}


@pytest.fixture(scope="module")
def planned():
    """The jobs of configs that Snakemake has planned: they do not depend on the folder."""
    return {}


@pytest.fixture(autouse=True)
def plan_once(planned, monkeypatch):
    plan = leftovers.jobs_of

    def jobs_of(workflow):
        key = json.dumps([workflow.folder, workflow.config])
        if key not in planned:
            planned[key] = plan(workflow)
        return planned[key]

    monkeypatch.setattr(leftovers, "jobs_of", jobs_of)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The folder of an experiment in the working folder, with ten bytes per file."""
    monkeypatch.chdir(tmp_path)
    configure()
    folder = tmp_path / "results" / "tiny"
    for name in (*NEEDED, *LEFT_OVER):
        write(folder / name)
    return folder


def configure(file="tiny.yaml", **changes):
    Path(file).write_text(yaml.safe_dump(CONFIG | changes))


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("0123456789")


def files(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # The checksums of the user's rows, which Snakemake computes once.
    return found - {"digests.json"}


def clean(capsys, *arguments, status=0):
    assert main(["clean", *(arguments or ["tiny.yaml"])]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def listed(printed):
    words = (line.split() for line in printed.splitlines())
    return {line[-1] for line in words if len(line) == 3 and "/" in line[-1]}


def test_what_no_recipe_leads_to_is_listed_and_nothing_removed(place, capsys):
    printed = clean(capsys)
    assert listed(printed) == {f"results/tiny/{path}" for path in LEFT_OVER.values()}
    assert f"results/tiny: {len(set(LEFT_OVER.values()))} left over, {10 * len(LEFT_OVER)} B" in printed
    # Two folders of models: two files of ten bytes, and one.
    assert "     30 B   models: 2\n" in printed
    assert "     20 B     results/tiny/models/llama@0+old\n" in printed
    assert "Nothing was removed" in printed
    assert files(place) == {*NEEDED, *LEFT_OVER}


def test_delete_removes_it_and_nothing_else(place, capsys):
    clean(capsys, "tiny.yaml", "--delete")
    assert files(place) == set(NEEDED)
    assert clean(capsys) == "results/tiny: nothing is left over.\n"


def test_configs_that_share_a_folder_keep_what_either_needs(place, capsys):
    configure("more.yaml", steps={**CONFIG["steps"], "old": CONFIG["steps"]["cot"]}, recipes=[["old"]])
    kept = {path for path in LEFT_OVER.values() if "llama@0+old" in path and "plans" not in path}
    left = {f"results/tiny/{path}" for path in set(LEFT_OVER.values()) - kept}
    assert listed(clean(capsys, "tiny.yaml", "more.yaml")) == left
    # Merged, the second one's recipes take the place of the first one's.
    merged = listed(clean(capsys, "tiny.yaml", "more.yaml", "--merge"))
    assert "results/tiny/models/llama@0+cot" in merged
    assert "results/tiny/models/llama@0+old" not in merged


def test_experiments_with_folders_of_their_own_are_cleaned_one_by_one(place, capsys):
    configure("other.yaml", name="other")
    write(place.parent / "other" / "models" / "llama@7" / "copra.json")
    printed = clean(capsys, "tiny.yaml", "other.yaml")
    assert "results/other/models/llama@7" in listed(printed)
    assert "results/other/models/llama@7" not in listed(clean(capsys))


def test_links_are_never_followed(place, tmp_path, capsys):
    outside = tmp_path / "outside"
    write(outside / "llama@0+cot" / "copra.json")
    write(outside / "llama@0+old" / "copra.json")
    (place / "models" / "link").symlink_to(outside)
    # A folder that someone has moved to another disk.
    (place / "plans" / "llama@0+old.json").unlink()
    (place / "plans").rename(tmp_path / "moved")
    (place / "plans").symlink_to(tmp_path / "moved")
    write(tmp_path / "moved" / "llama@9.json")
    clean(capsys, "tiny.yaml", "--delete")
    assert not (place / "models" / "link").is_symlink()
    assert (place / "plans").is_symlink()
    assert files(outside) == {"llama@0+cot/copra.json", "llama@0+old/copra.json"}
    assert files(tmp_path / "moved") == {"llama@0+cot+lean.json", "llama@9.json"}


def state(place, name, node, unit="steps", process=2**22 + 1, started=0.0):
    """The state of a job whose last sign was long ago, or now."""
    folder = place / "state" / name
    folder.mkdir(parents=True)
    record = {"node": node, "total": 9, "unit": unit, "started": started}
    record |= {"host": socket.gethostname(), "process": process}
    (folder / watch.RUN).write_text(json.dumps(record))
    return f"results/tiny/state/{name}"


def test_states_that_no_job_will_go_on_from_are_removed(place, capsys):
    gone = {
        state(place, "of-no-recipe", "llama@0+old"),
        state(place, "of-other-settings", "llama@0+cot"),
        state(place, "evaluation-of-no-recipe", "llama@0+old", "questions"),
        state(place, "on-a-task-that-is-not-asked", "other/llama@0+cot", "questions"),
    }
    (place / "evaluations" / "llama@0+cot+lean").mkdir()
    kept = {
        state(place, "unfinished", "llama@0+cot+lean", "questions"),
        state(place, "on-another-task", "longer/llama@0+cot", "questions"),
        state(place, "running", "llama@0+old", process=os.getpid(), started=time.time()),
        state(place, "held", "llama@0+old"),
    }
    write(place / "state" / "search" / "loss.jsonl")
    with hold(place / "state" / "held", "llama@0+old", place / "models" / "llama@0+old" / "copra.json"):
        printed = clean(capsys, "tiny.yaml", "--delete")
    assert {path for path in listed(printed) if "/state/" in path} == gone
    assert all(not Path(path).exists() for path in gone)
    assert all(Path(path).is_dir() for path in kept)
    assert (place / "state" / "search" / "loss.jsonl").is_file()


def test_nothing_is_removed_while_snakemake_works_in_the_folder(place, tmp_path, capsys):
    write(tmp_path / ".snakemake" / "locks" / "0.input.lock")
    assert listed(clean(capsys))
    assert "Snakemake works in this folder" in clean(capsys, "tiny.yaml", "--delete", status=1)
    assert files(place) == {*NEEDED, *LEFT_OVER}


def test_a_folder_that_is_not_there_has_nothing_left_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configure()
    assert clean(capsys) == "results/tiny: nothing is left over.\n"
