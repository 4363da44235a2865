"""One job at a time on a state: real processes, and the files that jobs of other machines leave."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from copra.utils import locking
from copra.utils.errors import CopraError
from copra.utils.locking import file_of, hold, holder_of

pytestmark = pytest.mark.slow

# Says when it has the lock, and ends when it is told to, having written its output or not.
HOLDER = """
import sys, time
from pathlib import Path
from copra.utils.locking import hold

state, output = map(Path, sys.argv[1:])
with hold(state, "llama@0+cot", output) as made:
    print(made, flush=True)
    if sys.stdin.readline() == "write\\n":
        output.write_text("made")
"""
SECONDS = 60


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state" / "0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locking, "SECONDS_BETWEEN_TRIES", 0.01)


@pytest.fixture
def start(state, tmp_path):
    """Starts a process that wants the state."""
    started = []

    def start(output="output"):
        command = [sys.executable, "-c", HOLDER, str(state), str(tmp_path / output)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def held(start):
    """A process that has the state."""
    process = start()
    assert process.stdout.readline() == "False\n"
    return process


def end(process, word: str = "") -> str:
    """Let a process end in order; returns what it printed as an error."""
    _, printed = process.communicate(word + "\n", timeout=SECONDS)
    assert process.returncode == 0, printed
    return printed


def says_it_waits(process) -> str:
    return process.stderr.readline()


def test_the_second_waits_says_for_whom_and_has_it_then(held, start, state):
    second = start()
    said = says_it_waits(second)
    assert f"waiting for process {held.pid} of " in said
    assert "(llama@0+cot, since 20" in said
    assert f"{state} too" in said
    assert holder_of(state)["process"] == held.pid
    end(held)
    assert second.stdout.readline() == "False\n"
    assert holder_of(state)["process"] == second.pid
    end(second)
    assert list(state.parent.iterdir()) == []


def test_what_the_first_has_made_is_not_made_again(held, start, state):
    second = start()
    says_it_waits(second)
    end(held, "write")
    assert second.stdout.readline() == "True\n"
    assert "made by process" in end(second)
    assert list(state.parent.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_another_output_or_an_older_one_is_nothing_that_was_made(held, start, tmp_path, there):
    if there:
        (tmp_path / "output").write_text("older")
    second = start("output" if there else "another")
    says_it_waits(second)
    end(held, "" if there else "write")
    assert second.stdout.readline() == "False\n"


def test_without_anybody_before_an_output_is_made_again(start, tmp_path):
    (tmp_path / "output").write_text("older")
    assert start().stdout.readline() == "False\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_has_it_no_longer(held, start, state, number):
    second = start()
    says_it_waits(second)
    held.send_signal(number)
    assert second.stdout.readline() == "False\n"
    second.kill()
    second.wait()
    assert file_of(state).exists()
    assert holder_of(state) is None
    with hold(state, "a", state) as made:
        assert not made
    assert not file_of(state).exists()


def test_of_many_that_wait_one_at_a_time_has_it(tmp_path):
    """Each reads a number, waits, and writes the next: none is lost."""
    number = tmp_path / "number"
    number.write_text("0")
    code = (
        "import sys, time; from pathlib import Path; from copra.utils import locking\n"
        "locking.SECONDS_BETWEEN_TRIES = 0.001\n"
        f"number = Path({str(number)!r})\n"
        "for _ in range(20):\n"
        f"    with locking.hold(Path({str(tmp_path / 'state')!r}), 'a', Path('/nowhere')):\n"
        "        value = int(number.read_text()); time.sleep(0.001); number.write_text(str(value + 1))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(SECONDS) for process in processes] == [0] * 4
    assert number.read_text() == "80"


def test_a_fork_that_outlives_the_job_does_not_keep_the_state(state):
    code = (
        "import os, sys, time; from pathlib import Path; from copra.utils.locking import hold\n"
        "with hold(Path(sys.argv[1]), 'a', Path('/nowhere')):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.close(1); time.sleep(600)\n"
        "    print(child, flush=True); time.sleep(600)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True)
    child = int(job.stdout.readline())
    try:
        assert holder_of(state)["process"] == job.pid
        job.kill()
        job.communicate()
        os.kill(child, 0)
        assert holder_of(state) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_that_ends_does_not_free_the_state(state):
    with hold(state, "a", state):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert holder_of(state)["process"] == os.getpid()


def elsewhere(state, age: float, **changes) -> None:
    """The file of a job of another machine, which touched it so many seconds ago."""
    record = {"host": "elsewhere", "process": 1, "node": "llama@0+cot", "output": "/output", "started": 1e9}
    file_of(state).parent.mkdir(exist_ok=True)
    file_of(state).write_text(json.dumps(record | changes))
    os.utime(file_of(state), (time.time() - age,) * 2)


def test_a_job_of_another_machine_has_it_while_it_gives_signs(state, start):
    elsewhere(state, age=60)
    waiting = start()
    assert "waiting for process 1 of elsewhere (llama@0+cot" in says_it_waits(waiting)
    assert holder_of(state)["host"] == "elsewhere"
    elsewhere(state, age=locking.SILENT_SECONDS + 1)
    assert holder_of(state) is None
    assert waiting.stdout.readline() == "False\n"
    assert holder_of(state)["process"] == waiting.pid


def test_what_a_job_of_another_machine_made_is_not_made_again(state, start, tmp_path):
    elsewhere(state, age=0, output=str(tmp_path / "output"))
    waiting = start()
    says_it_waits(waiting)
    (tmp_path / "output").write_text("made")
    file_of(state).unlink()
    assert waiting.stdout.readline() == "True\n"


def test_a_job_gives_signs(state, monkeypatch):
    monkeypatch.setattr(locking, "SECONDS_BETWEEN_SIGNS", 0.01)
    with hold(state, "a", state):
        os.utime(file_of(state), (0, 0))
        end = time.monotonic() + SECONDS
        while file_of(state).stat().st_mtime < 1e9:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_a_process_has_it_while_it_lives(without_locks, held, state):
    assert holder_of(state)["process"] == held.pid
    held.kill()
    held.communicate()
    assert holder_of(state) is None
    with hold(state, "a", state):
        assert holder_of(state)["process"] == os.getpid()
    assert not file_of(state).exists()


def test_without_locks_a_job_that_lost_its_state_ends(state):
    """It was suspended, and another machine took it for gone."""
    code = (
        "import errno, fcntl, sys, time; from pathlib import Path; from copra.utils import locking\n"
        "locking.SECONDS_BETWEEN_SIGNS = 0.01\n"
        "with locking.hold(Path(sys.argv[1]), 'a', Path('/nowhere')):\n"
        "    print(flush=True); time.sleep(600)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen([sys.executable, "-c", code, str(state)], text=True, **pipes)
    job.stdout.readline()
    elsewhere(state, age=0)
    _, printed = job.communicate(timeout=SECONDS)
    assert (job.returncode, "taken by process 1 of elsewhere" in printed) == (1, True)
    assert file_of(state).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "elsewhere"}'])
def test_a_file_that_says_nothing_is_nobodys(state, text):
    file_of(state).parent.mkdir()
    file_of(state).write_text(text)
    assert holder_of(state) is None
    with hold(state, "a", state) as made:
        assert not made


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "state").write_text("in the way")
    place = tmp_path / "state" / "a"
    with pytest.raises(CopraError, match=rf"^{place}\.lock: .* run again"), hold(place, "a", tmp_path):
        raise AssertionError("held")


def test_an_error_within_frees_the_state(state):
    with pytest.raises(ZeroDivisionError), hold(state, "a", state):
        1 / 0  # noqa: B018
    assert not file_of(state).exists()


def test_of_several_processes_the_first_one_holds_it(state, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with hold(state, "a", state) as made:
        assert not made
        assert not file_of(state).exists()
