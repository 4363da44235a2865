"""What `copra plan` says of a run, against what Snakemake says of it."""

import re

import pytest

from copra.experiment.workflow import Workflow
from copra.plan.jobs import jobs_of
from copra.plan.made import made_jobs
from copra.utils.files import read_yaml

CURVE = {"model": "llama+cot", "unit": "layers", "remove": [1]}
RECIPES = [["cot"], ["cot", "no_cot"], ["cot", "layers-1", "groups-1", "coconut"]]


def told(run, config="config.yaml"):
    """The numbers of all jobs and of those that are to run, as `copra plan` counts them."""
    workflow = Workflow(read_yaml(run.folder / config), config)
    jobs = jobs_of(workflow)
    return len(jobs), len(jobs) - len(made_jobs(jobs, workflow, run.results))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"latency": {}, "evaluation__latents": [1], "evaluation__lens": 2, "seeds": [0, 1]},
        {"curves": {"layers": {**CURVE, "metrics": ["cosine", "loss"]}}},
    ],
)
def test_all_jobs_are_those_of_snakemake(unstarted, tmp_path, values):
    run = unstarted.empty(tmp_path / "run")
    run.configure(**values)
    number = len(run.would_run())
    assert told(run) == (number, number)


CHANGES = {
    "nothing": {},
    "the data": {"tasks__sums__train": 299},
    "a first step": {"steps__cot__training__learning_rate": 1e-3},
    "a last step": {"steps__no_cot__training__learning_rate": 1e-3},
    "a late stage": {"steps__coconut__overrides": {1: {"learning_rate": 1e-3}}},
    "a budget": {"steps__groups-1__budget": {"count": 1}},
    "a recipe more": {"recipes": [*RECIPES, ["no_cot"]]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_jobs_to_run_are_those_of_snakemake(finished, tmp_path, change):
    """Where a change is one of recorded settings."""
    run = finished.with_config(tmp_path / "config.yaml", **CHANGES[change])
    expected = len(run.would_run())
    workflow = Workflow(read_yaml(tmp_path / "config.yaml"), "config.yaml")
    jobs = jobs_of(workflow)
    assert len(jobs) - len(made_jobs(jobs, workflow, run.results)) == expected


def test_what_is_recorded_nowhere_only_snakemake_knows(finished, tmp_path):
    run = finished.with_config(tmp_path / "config.yaml", evaluation__batch_size=7)
    workflow = Workflow(read_yaml(tmp_path / "config.yaml"), "config.yaml")
    jobs = jobs_of(workflow)
    assert len(made_jobs(jobs, workflow, run.results)) == len(jobs)
    assert run.would_run()


def test_the_target_plan_tells_the_merged_config_and_makes_nothing(run):
    (run.folder / "more.yaml").write_text("seeds: [0, 1]\n")
    before = {path for path in run.folder.rglob("*") if ".snakemake" not in path.parts}
    printed = run.snakemake(
        *("plan", "--configfile", str(run.folder / "config.yaml"), str(run.folder / "more.yaml"))
    )
    assert "config.yaml, more.yaml: 3 recipes" in printed
    assert "16 models (2 base" in printed
    after = {path for path in run.folder.rglob("*") if ".snakemake" not in path.parts}
    assert after - before == {run.results / "logs" / "plan.log"}
    assert run.would_run() == set()
    # Benchmarks of the finished jobs stand for their time.
    assert re.search(r"\d+ finished jobs took as long as measured", printed)


def test_status_counts_the_finished_run(run, capsys):
    from copra.cli import main

    arguments = ["status", run.folder / "config.yaml", "--results", run.results]
    assert main(list(map(str, arguments))) == 0
    number = told(run)[0]
    text = capsys.readouterr().out
    assert f"{number} of {number} jobs have their result" in text
    assert "Nothing that tells its progress runs" in text
    assert "Failed" not in text
