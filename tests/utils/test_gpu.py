"""Which GPU a process takes: several real processes on GPUs that only exist in lists."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.profiles import ProfileConfigFileParser

from copra.cli import COMMANDS
from copra.utils.gpu import gpus, gpus_of_machine, jobs_beside, take_gpus

ROOT = Path(__file__).parents[2]
# Takes a GPU, tells its name, and holds it until its standard input ends.
HOLDER = """
import os, sys
from copra.utils.gpu import take_gpus
take_gpus(jobs=int(sys.argv[1]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""
SECONDS = 60


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes this a machine with so many GPUs, as nvidia-smi lists them, and no locks yet."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpus_of_machine.cache_clear()

    def make(count):
        lines = [f"echo 'GPU {number}: Some GPU (UUID: GPU-{number})'" for number in range(count)]
        program = tmp_path / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        program.chmod(0o755)

    yield make
    gpus_of_machine.cache_clear()


@pytest.fixture
def start(machine):
    """Starts processes that take a GPU."""
    started = []

    def start(jobs=1):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(jobs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def taken(process):
    """The GPU that a process got; waits for it."""
    return process.stdout.readline().strip()


def test_two_processes_take_two_gpus(machine, start):
    machine(2)
    assert {taken(start()), taken(start())} == {"0", "1"}


def test_many_at_once_take_one_each(machine, start):
    machine(4)
    processes = [start() for _ in range(4)]
    assert sorted(map(taken, processes)) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_process_waits_for_a_gpu_and_gets_that_of_a_killed_one(machine, start):
    machine(2)
    holders = {}
    for process in (start(), start()):
        holders[taken(process)] = process
    waiting = start()
    told = waiting.stderr.readline()
    assert told.startswith("waiting for a GPU: others hold too many of 0, 1 (locks are in ")
    assert waiting.poll() is None
    holders["1"].kill()
    assert taken(waiting) == "1"


@pytest.mark.slow
def test_a_process_that_ends_gives_its_gpu_back(machine, start):
    machine(1)
    first = start()
    assert taken(first) == "0"
    waiting = start()
    assert "waiting" in waiting.stderr.readline()
    first.stdin.close()
    assert taken(waiting) == "0"


@pytest.mark.slow
def test_jobs_that_share_spread_over_the_gpus_before_they_double_up(machine, start):
    machine(2)
    sharing = [start(2) for _ in range(4)]
    assert sorted(map(taken, sharing)) == ["0", "0", "1", "1"]
    waiting = start(2)
    assert "waiting for a GPU" in waiting.stderr.readline()
    sharing[0].kill()
    assert taken(waiting) in ("0", "1")


def test_the_emptiest_gpu_comes_first(machine, start):
    machine(2)
    assert [taken(start(2)) for _ in range(3)] == ["0", "1", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3, 8])
def test_a_job_that_wants_a_gpu_alone_does_not_share(machine, start, jobs):
    machine(1)
    sharing = start(jobs)
    assert taken(sharing) == "0"
    alone = start(1)
    assert "waiting for a GPU" in alone.stderr.readline()
    sharing.kill()
    assert taken(alone) == "0"
    assert "waiting for a GPU" in start(jobs).stderr.readline()


def test_jobs_that_share_in_different_numbers_do_not_overlap(machine, start):
    """A half, a quarter and a quarter of one GPU, and no more."""
    machine(1)
    assert [taken(start(jobs)) for jobs in (2, 4, 4)] == ["0", "0", "0"]
    assert "waiting for a GPU" in start(4).stderr.readline()


def test_a_gpu_that_the_user_chose_is_shared_by_so_many_and_no_more(machine, start, monkeypatch):
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [taken(start(2)) for _ in range(2)] == ["1", "1"]
    assert "waiting for a GPU" in start(2).stderr.readline()


def test_slurm_jobs_have_their_gpus_for_themselves(machine, start, monkeypatch):
    machine(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert [taken(start(2)) for _ in range(3)] == ["0"] * 3
    assert jobs_beside(2) == 1


def test_a_list_of_gpus_is_chosen_from(machine, start, monkeypatch):
    machine(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-2")
    assert gpus() == ("5", "GPU-2")
    assert {taken(start()), taken(start())} == {"5", "GPU-2"}


@pytest.mark.parametrize("visible", ["1", "", "-1", "NoDevFiles"])
def test_a_choice_that_was_made_stands(machine, start, monkeypatch, visible):
    """By SLURM or by the user; two of them may be on one GPU then."""
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [taken(start()), taken(start())] == [visible, visible]


def test_a_slurm_job_without_a_gpu_takes_none(machine, start, monkeypatch):
    machine(2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert taken(start()) == "None"


def test_slurm_jobs_number_their_gpus_on_their_own(machine, start, monkeypatch):
    """Where a job sees only its own GPUs, 0 is another one in each job."""
    machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert [taken(start()), taken(start())] == ["0", "1"]
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert taken(start()) == "0"


def test_nothing_happens_on_a_machine_without_gpus(machine, monkeypatch, tmp_path):
    machine(0)
    take_gpus()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not list(tmp_path.glob("copra-gpus*"))


@pytest.mark.parametrize(("count", "limit"), [(0, 1), (1, 1), (3, 3)])
def test_the_default_profile_lets_as_many_gpu_jobs_run_as_there_are_gpus(machine, count, limit):
    machine(count)
    with (ROOT / "profiles" / "default" / "config.yaml").open() as file:
        assert ProfileConfigFileParser().parse(file)["resources"] == [f"gpu={limit}"]


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "limit"), [(1, 3), (2, 6)])
def test_snakemake_lets_as_many_jobs_run_as_share_the_gpus(tmp_path, jobs, limit):
    (tmp_path / "Snakefile").write_text(
        f'include: "{ROOT / "Snakefile"}"\nprint("limit", workflow.global_resources["gpu"].value)\n'
    )
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--cores", "1"]
    command += ["--configfile", str(ROOT / "config.yaml"), "--workflow-profile", "none"]
    command += ["--resources", "gpu=3", "--config", f"compute={{gpu: 1, jobs_per_gpu: {jobs}}}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert f"limit {limit}" in (done.stdout + done.stderr).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name, each in COMMANDS.items() if each.computes])
def test_a_command_that_computes_takes_its_gpu_before_torch_is_imported(machine, start, command):
    """CUDA may look at the GPUs when torch is imported."""
    machine(1)
    assert taken(start()) == "0"
    code = """
import sys, copra.utils.gpu
from copra.cli import main

def waited(_):
    print("torch" in sys.modules, f"copra.commands.{sys.argv[1]}" in sys.modules)
    sys.exit()

copra.utils.gpu.time.sleep = waited
main(sys.argv[1:])
"""
    line = [sys.executable, "-c", code, command, "--settings", "{}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "False False\n"
    assert "waiting for a GPU" in done.stderr
