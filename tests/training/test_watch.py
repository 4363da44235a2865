"""What a job says of itself while it runs, and what is read back from it."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from copra.utils import heartbeat as watch

NODE = "llama@0+cot"
GONE = 2**22 + 1
"""No process has this number: it is above the largest that Linux gives out."""


@pytest.fixture
def clock(monkeypatch):
    """The clocks of the module, which tests move."""

    class Clock:
        now = 1e9

        def __iadd__(self, seconds):
            self.now += seconds
            return self

    clock = Clock()
    monkeypatch.setattr(watch.time, "time", lambda: clock.now)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now - 1e6)
    return clock


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state" / "0123456789abcdef"
    folder.mkdir(parents=True)
    return folder


def write_run(state, **changes):
    """The record of a job that another process announced."""
    run = {"node": NODE, "total": 100, "unit": "steps", "started": 1e9, "host": "elsewhere", "process": 1}
    (state / watch.RUN).write_text(json.dumps(run | changes))


def test_a_job_tells_how_far_it_is(state, tmp_path, clock):
    heartbeat = watch.start_heartbeat(state, NODE, 200)
    for step in range(1, 31):
        clock += 2
        heartbeat.record(step)
    (state / watch.LOG).write_text('{"step": 28, "loss": 0.5, "learning_rate": 0.001}\n')
    (state / "step-000000020").mkdir()
    (found,) = watch.running(tmp_path)
    assert (found.node, found.unit, found.total) == (NODE, "steps", 200)
    # Written down every 6 seconds, with the third step after the one before.
    assert found.step == 28
    assert found.speed == pytest.approx(0.5)
    assert found.seconds_left == pytest.approx(172 / 0.5)
    assert found.silent == pytest.approx(4)
    assert found.line == {"step": 28, "loss": 0.5, "learning_rate": 0.001}
    assert found.saved == 20
    assert not found.stopped


def test_ticks_are_few_and_cheap(state, clock):
    heartbeat = watch.start_heartbeat(state, NODE, 10**6)
    written = 0
    for step in range(1, 1001):
        clock += 0.01
        written += heartbeat.record(step)
    assert written == len((state / watch.SPEED).read_text().splitlines()) == 2


def test_a_tick_costs_microseconds(state):
    heartbeat = watch.start_heartbeat(state, NODE, 10**6)
    heartbeat.record(1)
    start = time.perf_counter()
    for step in range(10_000):
        heartbeat.record(step)
    assert (time.perf_counter() - start) / 10_000 < 5e-5


def test_speed_is_that_of_the_last_minutes(state, tmp_path, clock):
    """100 slow ticks, then 60 quick ones."""
    heartbeat = watch.start_heartbeat(state, NODE, 10**6)
    step = 0
    for steps in [1] * 100 + [50] * 60:
        clock += 5
        step += steps
        heartbeat.record(step)
    assert watch.running(tmp_path)[0].speed == pytest.approx(10)


def test_a_job_that_goes_on_begins_a_new_record(state, tmp_path, clock):
    watch.start_heartbeat(state, NODE, 100).record(1)
    clock += 1000
    heartbeat = watch.start_heartbeat(state, NODE, 100)
    (found,) = watch.running(tmp_path)
    assert (found.step, found.speed, found.silent) == (0, None, 0)
    assert heartbeat.record(51)
    assert watch.running(tmp_path)[0].step == 51


def test_evaluations_count_questions(state, tmp_path):
    assert watch.start_heartbeat(state, NODE, 1000, unit="questions").record(128)
    (found,) = watch.running(tmp_path)
    assert (found.unit, found.step, found.total) == ("questions", 128, 1000)


def test_a_job_without_a_process_is_stopped(state, tmp_path):
    write_run(state, host=socket.gethostname(), process=GONE)
    assert not watch.running(tmp_path, now=1e9 + 59)[0].stopped
    found = watch.running(tmp_path, now=1e9 + 61)[0]
    assert found.stopped
    assert found.silent == 61


def test_a_silent_process_still_runs(state, tmp_path):
    """As in a long validation; a process that began after the job only has its number."""
    own = {"host": socket.gethostname(), "process": os.getpid()}
    write_run(state, started=time.time(), **own)
    assert not watch.running(tmp_path, now=time.time() + 3600)[0].stopped
    write_run(state, started=1e9, **own)
    assert watch.running(tmp_path)[0].stopped


def test_a_job_of_another_machine_is_stopped_after_minutes_of_silence(state, tmp_path):
    write_run(state, host="elsewhere")
    assert not watch.running(tmp_path, now=1e9 + 599)[0].stopped
    assert watch.running(tmp_path, now=1e9 + 601)[0].stopped


def test_what_is_half_written_is_passed_over(state, tmp_path):
    write_run(state)
    (state / watch.LOG).write_text('{"step": 7, "loss": 0.25}\n{"step": 8, "lo')
    (state / watch.SPEED).write_text('{"step": 7, "time": 1000000010.0}\n12\n{"step": 9')
    (found,) = watch.running(tmp_path, now=1e9 + 20)
    assert (found.step, found.line, found.silent) == (7, {"step": 7, "loss": 0.25}, 10)


def test_only_the_end_of_a_long_log_is_read(state, tmp_path):
    write_run(state)
    line = json.dumps({"step": 1, "loss": 1.0, "padding": "x" * 100}) + "\n"
    (state / watch.LOG).write_text(line * 5000 + '{"step": 5001, "loss": 0.5}\n')
    assert watch.running(tmp_path, now=1e9)[0].line == {"step": 5001, "loss": 0.5}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"node": 1}', '{"node": "a", "total": null, "started": 1}'])
def test_a_record_that_cannot_be_read_is_no_job(state, tmp_path, text):
    (state / watch.RUN).write_text(text)
    assert watch.running(tmp_path) == []


def test_folders_without_a_record_are_no_jobs(state, tmp_path):
    (state / "losses.jsonl").write_text("{}\n")
    assert watch.running(tmp_path) == []
    assert watch.running(tmp_path / "nowhere") == []


def test_a_folder_that_vanishes_stops_nobody(state, tmp_path, monkeypatch, clock):
    heartbeat = watch.start_heartbeat(state, NODE, 10)
    for file in state.iterdir():
        file.unlink()
    state.rmdir()
    clock += 100
    heartbeat.record(5)
    assert watch.running(tmp_path) == []
    # And while it is read: the record is there, the rest is not.
    monkeypatch.setattr(
        watch.Path, "read_text", lambda self: json.dumps({"node": "a", "total": 1, "started": 1})
    )
    assert watch._read(state, 2.0).step == 0


def test_where_nothing_can_be_written_the_work_goes_on(tmp_path):
    (tmp_path / "file").write_text("in the way")
    watch.start_heartbeat(tmp_path / "file" / "state", NODE, 10).record(1)


def test_of_several_processes_the_first_one_writes(state, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not watch.start_heartbeat(state, NODE, 10).record(1)
    assert list(state.iterdir()) == []


def test_watching_imports_no_torch():
    code = "import sys, copra.utils.heartbeat; print({'torch', 'pandas', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
