"""Jobs and the Snakemake that started them, with a shell between: real processes, killed with SIGKILL."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from copra.utils import ending
from copra.utils.ending import VARIABLE, name_snakemake

# Starts a job from a shell, as Snakemake does, and stays.
SNAKEMAKE = """
import os, subprocess, sys, time
from copra.utils.ending import name_snakemake

name_snakemake()
subprocess.Popen(["bash", "-c", '"$0" -c "$1"; exit $?', sys.executable, sys.argv[1]])
time.sleep(600)
"""
JOB = """
import os, time
from copra.utils.ending import end_with_snakemake
end_with_snakemake()
print(os.getpid(), flush=True)
time.sleep(600)
"""
# Works as a training does: it ends itself once it has been asked to.
TRAINING = """
import os, time
from copra.utils.ending import end_with_snakemake
from copra.training.saves import CheckpointSchedule
end_with_snakemake()
saves = CheckpointSchedule(1e9)
with saves.listening():
    print(os.getpid(), flush=True)
    while not saves.is_due(1):
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep({saving})
print("saved after", saves.signal, flush=True)
"""
SECONDS = 60


@pytest.fixture
def start():
    """Starts a Snakemake with a job; gives both processes."""
    started = []

    def start(job: str) -> tuple[subprocess.Popen, psutil.Process]:
        command = [sys.executable, "-c", SNAKEMAKE, job]
        snakemake = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(snakemake)
        found = psutil.Process(int(snakemake.stdout.readline()))
        started.append(found)
        return snakemake, found

    yield start
    for process in started:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    for process in started:
        if isinstance(process, subprocess.Popen):
            process.communicate()


def test_a_job_ends_with_its_snakemake(start):
    snakemake, job = start(JOB)
    assert job.parent().name() == "bash"
    snakemake.kill()
    job.wait(SECONDS)
    assert "has ended" in snakemake.stderr.read()


def test_a_training_saves_first(start):
    snakemake, _ = start(TRAINING.format(saving=0))
    snakemake.kill()
    assert snakemake.stdout.read() == f"saving\nsaved after {signal.SIGTERM.value}\n"


@pytest.mark.slow
def test_a_training_that_saves_already_is_not_disturbed(start):
    """As after Ctrl-C, which Snakemake gets too: a second signal would end it at once."""
    snakemake, job = start(TRAINING.format(saving=2))
    job.send_signal(signal.SIGTERM)
    assert snakemake.stdout.readline() == "saving\n"
    snakemake.kill()
    assert snakemake.stdout.read() == f"saved after {signal.SIGTERM.value}\n"
    assert "has ended" in snakemake.stderr.read()


@pytest.fixture
def ended(monkeypatch):
    """The signals that this process sends itself."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setenv(VARIABLE, "")
    return sent


def test_a_snakemake_that_is_gone_before_the_job_begins_ends_it(ended, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    numbering = ending._numbering()
    for token in (f"{gone.pid}.1", f"{os.getpid()}.1"):  # no process, and another one of the same number
        monkeypatch.setenv(VARIABLE, f"{numbering} {token}")
        ending.end_with_snakemake()
    assert ended == [(os.getpid(), signal.SIGTERM)] * 2


@pytest.mark.parametrize("name", [None, "another-start.4026531836 1.1"], ids=["none", "another machine"])
def test_without_a_snakemake_here_a_job_ends_by_itself(ended, monkeypatch, name):
    monkeypatch.delenv(VARIABLE) if name is None else monkeypatch.setenv(VARIABLE, name)
    ending.end_with_snakemake()
    assert ended == []


def test_a_snakemake_names_itself(ended):
    name_snakemake()
    ending.end_with_snakemake()
    assert os.environ[VARIABLE].split()[1].split(".")[0] == str(os.getpid())
    assert ended == []
