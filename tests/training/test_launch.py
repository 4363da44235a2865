"""`copra train --processes 2` as a person starts it: real processes, and a signal to their launcher."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from stages import log_of, words

from copra.utils.files import MANIFEST

STEPS = 30
SECONDS = 240

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_cpu")]


def start(place, output: str, count: int, *options: str, arguments=None) -> subprocess.Popen:
    line = [sys.executable, "-m", "copra.cli", "train", "--processes", str(count), *options]
    line += arguments or words(place, "tiny", output, steps=STEPS, select_best_by="loss", num_validations=3)
    return subprocess.Popen(
        line,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, printed
    return printed


def files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def undisturbed(place):
    finish(start(place, "whole", 2))
    return place / "whole"


def test_two_processes_go_on_after_a_signal(place, undisturbed):
    assert [line["step"] for line in log_of(place, "whole")] == list(range(1, STEPS + 1))
    ended = start(place, "ended", 2, arguments=renamed(place))
    deadline = time.monotonic() + SECONDS
    while not list((place / "state").glob("*/step-*")):
        assert ended.poll() is None, ended.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended.send_signal(signal.SIGTERM)
    printed, _ = ended.communicate(timeout=SECONDS)
    assert ended.returncode == 128 + signal.SIGTERM, printed
    assert "copra train: ended by SIGTERM after step" in printed
    assert "Traceback" not in printed
    assert not (place / "ended").exists()
    printed = finish(start(place, "ended", 2, arguments=renamed(place)))
    assert "going on after step" in printed
    # The same settings in another folder: all but the folder's name is the same.
    assert files(place / "ended") == files(undisturbed)
    assert not list((place / "state").iterdir())


def renamed(place) -> list[str]:
    """What made `whole`, for another folder."""
    arguments = words(place, "tiny", "whole", steps=STEPS, select_best_by="loss", num_validations=3)
    return [word.replace(str(place / "whole"), str(place / "ended")) for word in arguments]


def test_without_their_launcher_the_processes_end_too(place):
    launcher = start(place, "killed", 2, arguments=words(place, "tiny", "killed", steps=10_000))
    deadline = time.monotonic() + SECONDS
    while not list((place / "state").glob("*/step-*")):
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_failure_in_all_processes_is_told_and_ends_with_its_status(place):
    arguments = words(place, "tiny", "none", steps=STEPS, learning_rate=1e6)
    process = start(place, "none", 2, arguments=arguments)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, printed
    assert re.search(r"copra train: step [23]: loss", printed)  # by the rounding of the processor
    assert "Traceback" not in printed
    assert not (place / "none" / MANIFEST).exists()
