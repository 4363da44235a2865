"""Seconds of jobs from their work, by hand, and what calibrates them."""

import re
from pathlib import Path

import pytest

from copra.experiment.config import Compute
from copra.plan.jobs import Job
from copra.plan.machine import (
    COMPUTING,
    SHARED,
    START_SECONDS,
    Work,
    machine_of,
    measured_seconds,
    speed_factors,
)

ROOT = Path(__file__).parents[2]
SLOW = machine_of(Compute(threads=2), peak_flops=100.0, utilization=0.5)


def job(rule, benchmark=Path("nowhere")):
    return Job(rule, "a", (), Path("log"), benchmark, (), True)


def test_seconds_are_flops_over_the_reached_speed_or_passes_and_the_start():
    assert SLOW.seconds("train", Work(1000.0)) == 7 + 10
    assert SLOW.seconds("evaluate", Work(1000.0, 1000.0)) == 7 + 30
    assert SLOW.seconds("train", Work(1000.0, layers=20000)) == 7 + 20
    assert SLOW.seconds("table", Work()) == 1.5
    gpus = machine_of(Compute(gpu=4, precision="bfloat16"))
    assert [gpus.devices(rule) for rule in ("train", "score", "data")] == [4, 1, 0]
    assert gpus.seconds("train", Work(1e18)) == pytest.approx(7 + 1e18 / (4 * 312e12 * 0.3))
    assert gpus.seconds("convert", Work(1e12)) == pytest.approx(60 + 1e12 / (1e11 * 0.2)), "on its CPU"


def test_rules_that_compute_are_those_that_request_a_gpu():
    bodies = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        _, *rules = re.split(r"^rule (\w+):$", file.read_text(), flags=re.MULTILINE)
        bodies |= dict(zip(rules[::2], rules[1::2], strict=True))
    assert {rule for rule, body in bodies.items() if re.search(r"\bgpu=", body)} == set(COMPUTING)
    assert {rule for rule, body in bodies.items() if "{resources.processes}" in body} == set(SHARED)
    assert set(START_SECONDS) <= set(bodies)


def test_only_jobs_that_compute_calibrate_the_speed():
    """A download of an hour slows no training down."""
    jobs = {rule: job(rule) for rule in ("data", "base", "train", "figure")}
    works = {"data": Work(), "base": Work(), "train": Work(1000.0), "figure": Work()}
    factors = speed_factors(SLOW, jobs, works, {"data": 3600.0, "base": 3600.0, "train": 34.0, "figure": 9.0})
    assert factors == {"train": 2.0, "": 2.0}
    fast = machine_of(Compute(threads=2), 100.0, 0.5)
    fast = type(fast)(**{**vars(fast), "factors": {"train": 2.0, "": 3.0}})
    assert fast.seconds("train", Work(1000.0)) == 34
    assert fast.seconds("score", Work(1000.0)) == 51
    assert fast.seconds("data", Work()) == 1.5
    assert fast.seconds("convert", Work(1000.0)) == 3 * (60 + 20), "on one thread"


def test_benchmarks_are_read_where_there_are_any(tmp_path):
    (tmp_path / "a.tsv").write_text("s\th:m:s\n37.5\t0:00:37\n")
    assert measured_seconds(job("train", tmp_path / "a.tsv")) == 37.5
    (tmp_path / "a.tsv").write_text("s\n")
    assert measured_seconds(job("train", tmp_path / "a.tsv")) is None
    assert measured_seconds(job("train")) is None
