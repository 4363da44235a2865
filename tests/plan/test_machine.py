"""From work to seconds, by hand."""

import pytest

from copra.experiment.config import Compute
from copra.plan.jobs import Job
from copra.plan.machine import Machine, clock_of, machine_of, measured_seconds
from copra.plan.work import Work

CPU = Machine("CPU", 2, 2, 1e9, 0.5)
JOBS = {
    job.key: job for job in (Job("train", "a"), Job("train", "b"), Job("evaluate", "b"), Job("table", "t"))
}


def test_seconds_of_work():
    assert CPU.seconds("train", Work(flops=3e9)) == pytest.approx(3)
    # A FLOP of an answer takes three times as long.
    assert CPU.seconds("evaluate", Work(flops=3e9, written=1e9)) == pytest.approx(5)
    # Small layers take 0.8 ms each on a CPU, and weights move at 500 MB a second.
    assert CPU.seconds("train", Work(flops=1e6, layers=1000)) == pytest.approx(0.8)
    assert CPU.seconds("train", Work(moved=1e9)) == pytest.approx(2)


def test_the_machine_that_a_config_asks_for():
    assert machine_of(Compute(threads=4)) == Machine("CPU", 4, 4, 1e11, 0.2)
    assert machine_of(Compute(threads=4, processes=2)) == Machine("CPU", 8, 4, 1e11, 0.2)
    gpus = machine_of(Compute(gpu=2, precision="bfloat16"), utilization=0.5)
    assert gpus == Machine("GPU, bfloat16", 2, 1, 312e12, 0.5)
    assert machine_of(Compute(gpu=1), flops_per_second=1e15).flops_per_second == 1e15


def test_only_training_and_evaluation_share_gpus():
    gpus = Machine("GPU, bfloat16", 4, 1, 1e12, 0.5)
    assert [gpus.devices_of(verb) for verb in ("train", "evaluate", "score", "table")] == [4, 4, 1, 0]
    assert gpus.seconds("train", Work(flops=2e12)) == pytest.approx(1)
    assert gpus.seconds("score", Work(flops=2e12)) == pytest.approx(4)


@pytest.fixture
def measured(tmp_path):
    """The seconds of training a, as Snakemake writes them, and nothing of the rest that can be read."""
    folder = tmp_path / "benchmarks" / "train"
    folder.mkdir(parents=True)
    (folder / "a.tsv").write_text("s\th:m:s\tmax_rss\n47.0000\t0:00:47\t600.1\n")
    (folder / "b.tsv").write_text("s\th:m")
    return measured_seconds(JOBS, {"train/a", "train/b", "table/t"}, tmp_path)


def test_benchmarks_are_read(measured):
    assert measured == {"train/a": 47.0}


def test_what_is_measured_tells_how_long_the_rest_will_take(measured):
    """47 seconds where a start of 7 and 16.5 of work were said: all takes twice as long."""
    works = {
        "train/a": Work(16.5e9),
        "train/b": Work(10e9),
        "evaluate/b": Work(1e9, 0, 1e9),
        "table/t": Work(),
    }
    clock = clock_of(CPU, JOBS, works, measured)
    assert clock.factors == {"train": pytest.approx(2), "": pytest.approx(2)}
    assert clock.seconds(JOBS["train/a"], works["train/a"]) == 47.0
    assert clock.seconds(JOBS["train/b"], works["train/b"]) == pytest.approx(2 * (7 + 10))
    assert clock.seconds(JOBS["evaluate/b"], works["evaluate/b"]) == pytest.approx(2 * (7 + 3))
    assert clock.seconds(JOBS["table/t"], Work()) == pytest.approx(2 * 1.5)


def test_each_verb_has_its_own_measure():
    """Training took half of 20 seconds, evaluation three times 10: together 40 of 30."""
    works = {"train/a": Work(13e9), "train/b": Work(13e9), "evaluate/b": Work(3e9), "table/t": Work()}
    clock = clock_of(CPU, JOBS, works, {"train/a": 10.0, "evaluate/b": 30.0})
    assert clock.factors == {"train": 0.5, "evaluate": 3.0, "": pytest.approx(4 / 3)}
    assert clock.seconds(JOBS["train/b"], works["train/b"]) == pytest.approx(10)
    assert clock.seconds(JOBS["table/t"], Work()) == pytest.approx(2)


def test_a_machine_that_was_given_is_taken_at_its_word(measured):
    works = dict.fromkeys(JOBS, Work(10e9))
    clock = clock_of(CPU, JOBS, works, measured, trusted=False)
    assert clock.seconds(JOBS["train/a"], works["train/a"]) == 47.0
    assert clock.seconds(JOBS["train/b"], works["train/b"]) == pytest.approx(7 + 10)
