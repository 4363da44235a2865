"""Jobs as forks: they are what their command is, and nothing of them or their server stays."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from snakemake import benchmark

import copra
from copra.utils import forking
from copra.utils.forking import VARIABLE
from copra.utils.processes import token_of

pytestmark = pytest.mark.slow

SOURCE = str(Path(copra.__file__).parents[1])
# A verb that needs no library, and takes the place of one that starts a server.
VERB = """\
import json, os, signal, sys, time

def arguments(parser):
    parser.add_argument("--what", nargs="*")

def run(options):
    print("in", "torch" in sys.modules, flush=True)  # in a fork
    what = options.what
    if what[0] == "tell":
        seen = {name: os.environ[name] for name in os.environ if name.startswith("SEEN")}
        told = {"argv": sys.argv[1:], "folder": os.getcwd(), "seen": seen, "pid": os.getpid()}
        print(json.dumps(told), file=sys.stderr)
        print(sys.stdin.read(), end="")
    elif what[0] == "exit":
        sys.exit(int(what[1]))
    elif what[0] == "fail":
        raise ValueError("broken")
    elif what[0] == "die":
        os.kill(os.getpid(), int(what[1]))
    elif what[0] == "wait":
        def end(number, frame):
            print("got", number, flush=True)
            sys.exit(7)
        signal.signal(signal.SIGTERM, end)
        print(os.getpid(), flush=True)
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a copy of what starts jobs, verbs that the tests command, and a torch that is nothing."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("commands", "utils"):
        (folder / "copra" / name).mkdir(parents=True)
    commands = ("commands/__init__", "commands/registry", "commands/resources")
    utils = (f"utils/{path.stem}" for path in (Path(SOURCE) / "copra" / "utils").glob("*.py"))
    for name in ("__init__", "cli", *commands, *utils):
        (folder / "copra" / f"{name}.py").write_text((Path(SOURCE) / "copra" / f"{name}.py").read_text())
    for verb in ("train", "data"):
        (folder / "copra" / "commands" / f"{verb}.py").write_text(VERB)
    server = folder / "copra" / "utils" / "forkserver.py"
    few = re.sub(
        r"LIBRARIES = \(.*?\)\n", 'LIBRARIES = ("torch", "numpy")\n', server.read_text(), flags=re.DOTALL
    )
    server.write_text(few)
    (folder / "torch.py").write_text("class cuda:\n    _is_in_bad_fork = staticmethod(lambda: False)\n")
    return folder


@pytest.fixture
def owner(package):
    """A process that a server ends with, as with Snakemake."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while servers(process.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert servers(process.pid) == []


def servers(pid):
    """The servers, keepers and jobs of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(f"-{pid}." in word for word in process.cmdline()) and process.status() != "zombie":
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


@pytest.fixture
def environment(package, owner):
    return os.environ | {"PYTHONPATH": str(package), VARIABLE: token_of(owner.pid), "SEEN": "1"}


def run(environment, *what, verb="train", **options):
    command = [sys.executable, "-m", "copra.cli", verb, "--what", *map(str, what)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def waiting(environment):
    """A command whose job waits, and the job's process."""
    command = [sys.executable, "-m", "copra.cli", "train", "--what", "wait"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in True\n"
    yield process, psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    process.stdout.close()


def gone(process):
    """True once the process has ended."""
    try:
        process.wait(30)
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_job_is_a_fork_with_all_that_its_command_has(environment, tmp_path):
    first = run(environment, "tell", "a b", cwd=tmp_path, input="one\n")
    assert first.stdout == "in True\none\n"
    told = json.loads(first.stderr)
    assert told["argv"] == ["train", "--what", "tell", "a b"]
    assert told["folder"] == str(tmp_path)
    assert told["seen"] == {"SEEN": "1"}
    second = run(environment, "tell", cwd="/", input="")
    assert json.loads(second.stderr)["folder"] == "/"
    assert json.loads(second.stderr)["pid"] != told["pid"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_ends_as_its_job(environment, status):
    assert run(environment, "exit", status).returncode == status


def test_an_error_is_told_as_ever(environment):
    done = run(environment, "fail")
    assert (done.stdout, done.returncode) == ("in True\n", 1)
    assert done.stderr.endswith("ValueError: broken\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_command_dies_as_its_job(environment, number):
    done = run(environment, "die", int(number))
    assert (done.stdout, done.returncode) == ("in True\n", -number)


@pytest.mark.parametrize(
    "unlike",
    [
        {"env": {"OTHER": "1"}},
        {"env": {"OMP_NUM_THREADS": "77"}},
        {"env": {VARIABLE: "off"}},
        {"env": {VARIABLE: "1.1"}},
        {"env": {"WORLD_SIZE": "2"}},
        {"umask": 0o077},
        {"start_new_session": True},
        {"preexec_fn": lambda: os.nice(1)},
    ],
    ids=lambda unlike: next(iter(unlike.get("env", unlike))),
)
def test_a_command_unlike_the_server_does_its_work_itself(environment, unlike):
    assert run(environment, "exit", 0).stdout == "in True\n"
    options = {key: unlike[key] for key in unlike if key != "env"}
    done = run(environment | unlike.get("env", {}), "exit", 5, **options)
    assert (done.stdout, done.returncode) == ("in False\n", 5)


def test_a_server_of_other_code_is_not_asked(environment, package):
    assert run(environment, "exit", 0).stdout == "in True\n"
    (package / "copra" / "utils" / "forking.py").touch()
    assert run(environment, "exit", 0).stdout == "in False\n"


def test_a_job_runs_the_code_as_it_is_then(environment, package):
    assert run(environment, "exit", 3).returncode == 3
    verb = package / "copra" / "commands" / "train.py"
    verb.write_text(VERB.replace("int(what[1])", "10 + int(what[1])", 1))
    try:
        done = run(environment, "exit", 3)
    finally:
        verb.write_text(VERB)
    assert (done.stdout, done.returncode) == ("in True\n", 13)


def test_a_light_verb_starts_no_server_but_uses_one(environment):
    assert run(environment, "exit", 0, verb="data").stdout == "in False\n"
    run(environment, "exit", 0)
    assert run(environment, "exit", 0, verb="data").stdout == "in True\n"


def test_a_signal_reaches_the_job_once(waiting):
    process, job = waiting
    process.terminate()
    assert process.wait(30) == 7
    assert process.stdout.read() == "got 15\n"
    assert gone(job)


def test_a_job_does_not_outlive_its_command(waiting):
    process, job = waiting
    process.kill()
    assert gone(job)


def test_a_job_does_not_outlive_its_keeper(waiting):
    process, job = waiting
    job.parent().kill()
    assert process.wait(30) == -signal.SIGKILL
    assert gone(job)


def test_a_server_ends_with_its_snakemake_and_the_job_goes_on(waiting, owner):
    process, job = waiting
    server = job.parent().parent()
    assert server.pid in servers(owner.pid)
    owner.kill()
    owner.wait()
    assert gone(server)
    assert job.is_running()
    process.terminate()
    assert process.wait(30) == 7


def test_two_commands_at_once_start_one_server(environment, owner):
    command = [sys.executable, "-m", "copra.cli", "train", "--what", "wait"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        jobs = []
        for process in both:
            assert process.stdout.readline() == "in True\n"
            jobs.append(psutil.Process(int(process.stdout.readline())))
        assert len({job.parent().parent().pid for job in jobs}) == 1
        assert len(servers(owner.pid)) == 5
    finally:
        for process in both:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.parametrize(
    ("unlike", "known", "expected"),
    [
        ({}, None, "own"),
        ({}, "1.1", "own"),
        ({}, "off", "off"),
        ({"non_local_exec": True}, "1.1", None),
        ({"is_main_process": False}, "1.1", None),
        ({"deployment_settings": SimpleNamespace(deployment_method={"apptainer"})}, "1.1", None),
    ],
)
def test_only_a_local_run_lets_its_jobs_be_forks(monkeypatch, unlike, known, expected):
    monkeypatch.setattr(forking, "_measure_forks", lambda: None)
    monkeypatch.setenv(VARIABLE, known or "")
    if known is None:
        monkeypatch.delenv(VARIABLE)
    local = {"non_local_exec": False, "is_main_process": True}
    local["deployment_settings"] = SimpleNamespace(deployment_method=set())
    forking.fork_jobs(SimpleNamespace(**local | unlike))
    assert os.environ.get(VARIABLE) == (token_of(os.getpid()) if expected == "own" else expected)


def test_benchmarks_measure_the_job_of_a_command(waiting, monkeypatch):
    process, job = waiting
    monkeypatch.setattr(benchmark, "BenchmarkTimer", benchmark.BenchmarkTimer)
    forking._measure_forks()
    record = benchmark.BenchmarkRecord()
    timer = benchmark.BenchmarkTimer(process.pid, record)
    timer.work()
    assert set(timer.procs) == {process.pid, job.pid}
    assert record.max_rss * 2**20 > job.memory_info().rss
