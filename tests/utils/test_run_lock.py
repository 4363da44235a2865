"""Locks of runs: freed only where the run has ended on this machine."""

import json
import os
import subprocess
import sys

import pytest

from copra.utils.ending import has_ended, this_process
from copra.utils.run_lock import NOTES, free_locks, note_locks

LOCKS = NOTES.parent / "locks"


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder with a lock of this process."""
    monkeypatch.chdir(tmp_path)
    LOCKS.mkdir(parents=True)
    (LOCKS / "0.input.lock").write_text("a\n")
    note_locks([str(LOCKS.absolute() / "0.input.lock")])
    return LOCKS / "0.input.lock"


def end(**changes):
    """Write the note as of a process that has ended."""
    (note,) = NOTES.glob("*.json")
    gone = subprocess.run(
        [sys.executable, "-c", "from copra.utils.ending import this_process; print(this_process())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    note.write_text(json.dumps({**json.loads(note.read_text()), "process": gone, **changes}))


def test_the_lock_of_a_run_that_lives_stays(locked):
    assert not has_ended(this_process())
    assert free_locks() == []
    assert locked.is_file()


def test_the_lock_of_a_run_that_has_ended_goes(locked):
    other = LOCKS / "1.input.lock"
    other.write_text("b\n")
    end()
    assert free_locks() == [locked]
    assert not locked.exists()
    assert other.is_file()
    assert list(NOTES.iterdir()) == []
    assert free_locks() == []


def test_a_lock_of_the_same_name_that_a_later_run_took_stays(locked):
    end()
    (note,) = NOTES.glob("*.json")
    os.utime(note, (1e9, 1e9))
    assert free_locks() == []
    assert locked.is_file()


@pytest.mark.parametrize("process", ["", "elsewhere.1 1.2", "None 1.2", "x"])
def test_a_run_elsewhere_may_live(locked, process):
    end(process=process)
    assert free_locks() == []
    assert locked.is_file()


def test_a_note_that_is_damaged_or_names_files_elsewhere_does_no_harm(locked, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("x")
    end(locks=["../../precious", str(precious)])
    assert free_locks() == []
    assert precious.is_file()
    (NOTES / "1.json").write_text("{")
    (NOTES / "2.json").write_text("{}")
    assert free_locks() == []
