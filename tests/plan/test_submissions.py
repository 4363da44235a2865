"""Submissions to a cluster: which jobs share one, and the minutes that they ask for."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from copra.plan.forecast import Line
from copra.plan.jobs import Job
from copra.plan.submissions import FACTOR, LEAST_MINUTES, SHORT_SECONDS, Submissions, plan_submissions

LONG = 2 * SHORT_SECONDS
LIMIT = 240


def line(key: str, seconds: float | None, *needs: str, cached: bool = False) -> tuple[str, Line]:
    rule, _, name = key.partition("/")
    job = Job(rule, name, (), Path("log"), Path("benchmark"), needs, cached)
    return key, Line(job, seconds=None if seconds is None else (seconds, seconds))


def shared(*lines: tuple[str, Line], most_jobs: int = 100) -> list[list[str]]:
    """The submissions of jobs, as lists of their keys."""
    found = plan_submissions(dict(lines), most_jobs)
    return list({each.number: list(each.seconds) for each in found.values()}.values())


def test_data_and_bases_share_one_submission_and_trainings_another_each():
    assert shared(
        line("data/train", 2),
        line("data/test", 2),
        line("base/a", 7, "data/train"),
        line("train/a+cot", 60, "base/a", "data/train"),
        line("train/a+pause", 60, "base/a", "data/train"),
        line("evaluate/a+cot", 10, "train/a+cot", "data/test"),
        line("train/a+cot+coconut", 60, "train/a+cot", "data/train"),
    ) == [
        ["data/train", "data/test", "base/a"],
        ["train/a+cot", "evaluate/a+cot", "train/a+cot+coconut"],
        ["train/a+pause"],
    ]


def test_evaluations_of_a_long_training_share_a_submission_without_it():
    assert shared(
        line("train/a", LONG),
        line("evaluate/a", 10, "train/a"),
        line("latency", 10, "train/a"),
        line("sweep_latents/a", 10, "train/a"),
    ) == [["train/a"], ["evaluate/a", "sweep_latents/a"], ["latency"]]


def test_a_job_joins_nothing_that_it_would_have_to_wait_for_longer():
    assert shared(
        line("train/a", 60),
        line("train/b", 60),
        line("evaluate/a", 10, "train/a", "train/b"),
        line("evaluate/b", 10, "train/b"),
    ) == [["train/a"], ["train/b", "evaluate/b"], ["evaluate/a"]]


def test_no_submission_waits_for_itself_through_a_local_job():
    assert shared(
        line("score/a", 10),
        line("select/a-1", 1, "score/a"),
        line("prune/a-1", 10, "score/a", "select/a-1"),
    ) == [["score/a"], ["select/a-1"], ["prune/a-1"]]


def test_a_submission_is_short_in_all_and_has_no_more_jobs_than_minutes():
    half = SHORT_SECONDS / 2
    chain = [line("train/0", half), line("train/1", half, "train/0"), line("train/2", half, "train/1")]
    assert shared(*chain) == [["train/0", "train/1"], ["train/2"]]
    assert shared(*chain, most_jobs=1) == [["train/0"], ["train/1"], ["train/2"]]


def test_jobs_that_are_done_or_of_unknown_time_are_in_no_submission():
    lines = (
        line("base/a", None),
        line("data/train", 2, cached=True),
        line("train/a", 60, "base/a", "data/train"),
        line("evaluate/a", 10, "train/a"),
    )
    assert shared(*lines) == [["train/a", "evaluate/a"]]


def test_a_job_asks_for_a_multiple_of_its_time_and_each_attempt_for_more_up_to_the_limit():
    only = plan_submissions(dict([line("train/a", 300), line("train/b", 60), line("train/c", LONG)]), 1)

    def asked(key: str) -> list[int]:
        return [only[key].minutes(key, attempt, LIMIT) for attempt in (1, 2, 3, 4)]

    assert asked("train/a") == [20, FACTOR * 20, LIMIT, LIMIT]
    assert asked("train/b") == [LEAST_MINUTES, FACTOR * LEAST_MINUTES, LIMIT, LIMIT]
    assert asked("train/c") == [80, LIMIT, LIMIT, LIMIT]
    assert only["train/a"].minutes("train/a", 1, 7) == 7


@pytest.mark.parametrize("limit", [30, 31, LIMIT])
@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_what_the_jobs_of_a_submission_ask_for_sums_up_to_the_limit_at_most(attempt, limit):
    chain = dict([line("train/0", 60), *(line(f"train/{n}", 9, f"train/{n - 1}") for n in range(1, 30))])
    (shares,) = {tuple(each.seconds): each for each in plan_submissions(chain, limit).values()}.values()
    asked = [shares.minutes(key, attempt, limit) for key in chain]
    assert min(asked) >= 1
    wanted = limit if attempt == 3 else min(limit, max(30, FACTOR**attempt * (60 + 29 * 9) / 60))
    assert sum(asked) == int(wanted)


class Wildcards(dict):
    """As Snakemake gives them to functions."""


def snakemake(non_local=True, main=True, parts=100, targets=(), storage=None):
    """As much of Snakemake's workflow as is asked for."""
    return SimpleNamespace(
        is_main_process=main,
        remote_exec=not main,
        non_local_exec=non_local,
        storage_settings=SimpleNamespace(default_storage_provider=storage),
        group_settings=SimpleNamespace(group_components={"short": parts}),
        dag_settings=SimpleNamespace(target_jobs=targets),
        parent_groupids={},
        global_resources={},
    )


@pytest.fixture
def no_forecast(monkeypatch):
    """A forecast that fails, and the number of times that it was asked for."""
    calls = []

    def fail(*_):
        calls.append(1)
        raise OSError("no disk")

    monkeypatch.setattr("copra.plan.submissions.forecast", fail)
    return calls


def test_without_a_forecast_jobs_ask_for_their_limits_and_are_alone(no_forecast, make_workflow, capsys):
    run = Submissions(snakemake(), make_workflow(compute__runtime_minutes=50))
    wildcards = Wildcards(node="a")
    assert [run.minutes("train/{node}")(wildcards, attempt) for attempt in (1, 2, 3)] == [50] * 3
    assert run.minutes("prune/{node}", 9)(wildcards, 2) == 9
    assert run.group("train/{node}")(wildcards) is None
    assert len(no_forecast) == 1
    assert "no disk" in capsys.readouterr().err


def test_local_runs_and_jobs_on_a_cluster_make_no_forecast(no_forecast, make_workflow):
    workflow, wildcards = make_workflow(), Wildcards(node="a")
    for each, group in (
        (snakemake(non_local=False, parts=1), None),
        (snakemake(storage="s3", parts=1), None),
        (snakemake(main=False, targets="a"), None),
        (snakemake(main=False, targets="ab"), "short"),
    ):
        run = Submissions(each, workflow)
        assert run.minutes("train/{node}")(wildcards, 1) == LIMIT
        assert run.group("train/{node}")(wildcards) == group
        # On the cluster it is all of them that make one group, connected or not.
        assert each.group_settings.group_components["short"] == (2 if group else 1)
    assert no_forecast == []


@pytest.mark.slow
def test_jobs_of_a_submission_have_one_group_whose_parts_count_for_all(make_workflow):
    run = Submissions(cluster := snakemake(), make_workflow())
    data = run.group("data/{task}/{split}")
    assert (
        data(Wildcards(task="sums", split="train")) == data(Wildcards(task="sums", split="test")) == "short-0"
    )
    assert cluster.parent_groupids["short-0"] == "short"
    assert cluster.global_resources == {"slot": 1, "gpu": 1}

    def group(rule: str, node: str) -> str | None:
        return run.group(f"{rule}/{{node}}")(Wildcards(node=f"llama@0{node}"))

    assert group("train", "+cot") == group("evaluate", "+cot") != "short-0"
    assert group("prune", "+cot+drop-1") == group("evaluate", "+cot+drop-1+coconut") != group("train", "+cot")
    run = Submissions(snakemake(parts=1), make_workflow())
    assert group("train", "+cot") is None
