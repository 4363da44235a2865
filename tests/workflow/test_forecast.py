"""The jobs of `copra plan` against those of a dry run of Snakemake, and the rule `plan`."""

import json
from dataclasses import replace

import pytest

from copra.experiment.workflow import Workflow
from copra.plan.jobs import jobs_of
from copra.utils.files import read_yaml

CURVE = {"model": "llama+cot", "unit": "layers", "remove": [1]}


def to_run(run, config, monkeypatch):
    """The numbers of all jobs and of those to run."""
    monkeypatch.chdir(run.folder)
    jobs = jobs_of(Workflow(read_yaml(config), "config.yaml"))
    return len(jobs), sum(not job.cached for job in jobs.values())


@pytest.mark.parametrize(
    "values",
    [
        {"latency": {}, "evaluation__latents": [1], "evaluation__lens": 2, "seeds": [0, 1]},
        {"curves": {"layers": {**CURVE, "metrics": ["cosine", "loss"]}}},
    ],
)
def test_all_jobs_are_those_of_snakemake(unstarted, tmp_path, values, monkeypatch):
    run = unstarted.empty(tmp_path / "run")
    run.configure(**values)
    number = len(run.would_run_with_report())
    assert to_run(run, run.folder / "config.yaml", monkeypatch) == (number, number)


@pytest.mark.parametrize(
    "change",
    [{}, {"steps__coconut__overrides": {1: {"learning_rate": 1e-3}}}, {"evaluation__batch_size": 7}],
)
def test_jobs_to_run_are_those_of_snakemake(finished, tmp_path, change, monkeypatch):
    """Also of settings that no result shows."""
    run = finished.with_config(tmp_path / "config.yaml", **change)
    expected = run.would_run_with_report()
    assert bool(expected) == bool(change)
    assert to_run(run, tmp_path / "config.yaml", monkeypatch)[1] == len(expected)


def test_the_target_plan_prints_the_merged_config_and_makes_nothing(run):
    (run.folder / "more.yaml").write_text("seeds: [0, 1]\n")
    before = {path for path in run.folder.rglob("*") if ".snakemake" not in path.parts}
    printed = run.snakemake(
        *("plan", "--configfile", str(run.folder / "config.yaml"), str(run.folder / "more.yaml"))
    )
    assert "config.yaml, more.yaml: 3 recipes" in printed
    assert "16 models (2 base" in printed
    assert " 0 to run" not in printed
    after = {path for path in run.folder.rglob("*") if ".snakemake" not in path.parts}
    assert after - before == {run.results / "logs" / "plan.log"}
    assert run.would_run() == set()


def test_status_counts_the_finished_run(run, capsys):
    from copra.cli import main

    arguments = ["status", run.folder / "config.yaml", "--results", run.results]
    assert main(list(map(str, arguments))) == 0
    text = capsys.readouterr().out
    done, _, total, *_ = text.split(": ", 1)[1].split()
    assert done == total
    assert "Nothing that tells its progress runs" in text
    assert "Failed" not in text


def test_variables_in_paths_are_no_wildcards(unstarted, tmp_path):
    """Neither for the rules of a run nor for the rule `plan`."""
    for split, number in (("train", 40), ("test", 9)):
        rows = ({"question": f"Is {n} more than {split}?", "answer": str(n)} for n in range(number))
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = unstarted.empty(tmp_path / "run")
    run = replace(run, environment={**run.environment, "ROWS": str(tmp_path)})
    files = {split: f"${{ROWS}}/{split}.jsonl" for split in ("train", "test")}
    run.configure(
        task="mine",
        tasks={"mine": {"kind": "rows", **files, "validation_share": 0.2}},
        steps__direct={"kind": "no_cot", "training": {"steps": 2}},
        recipes=[["direct"]],
        reference=None,
    )
    assert "Writing the report" in run.would_run_with_report()
    assert "To run: " in run.snakemake("plan")
