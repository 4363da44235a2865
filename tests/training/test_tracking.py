"""Training lines for trackers: what is handed on, to whom, and what happens where a tracker is missing.

The trackers here are stand-ins for their libraries, behind accelerate's own wrappers; TensorBoard's is the
real one where it is installed.
"""

import importlib
import sys
from importlib.util import find_spec

import pytest
from accelerate import Accelerator

from copra.training.tracking import KINDS, Tracker
from copra.utils.errors import CopraError

NODE = "llama@0+cot"
LINE = {"step": 3, "loss": 0.5, "learning_rate": 1e-3, "validation_loss": 0.25, "note": "x", "flag": True}

# As far as accelerate's wrappers use them; each writes down what it was called with.
STAND_INS = {
    "wandb": """
calls = []
class Run:
    def log(self, values, step=None):
        calls.append(("log", values, step))
    def finish(self):
        calls.append(("finish",))
def init(**options):
    calls.append(("init", options))
    return Run()
""",
    "trackio": """
import os
calls = []
class Run:
    def log(self, values, step=None):
        calls.append(("log", values, step))
    def finish(self):
        calls.append(("finish",))
def init(**options):
    calls.append(("init", options | {"folder": os.environ["TRACKIO_DIR"]}))
    return Run()
""",
}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Makes a stand-in for a library; returns it."""

    def make(kind: str):
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "lib" / f"{kind}.py").write_text(STAND_INS[kind])
        monkeypatch.syspath_prepend(tmp_path / "lib")
        monkeypatch.delitem(sys.modules, kind, raising=False)
        for name in ("TRACKIO_DIR", "WANDB_MODE"):
            # First set, so that what a tracker sets is taken back after the test.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        return importlib.import_module(kind)

    return make


@pytest.fixture(autouse=True)
def _begun():
    """Accelerate has begun, as in a training."""
    Accelerator(cpu=True)


def track(kind, folder):
    tracker = Tracker(kind, folder, NODE)
    tracker.log(LINE, 3)
    tracker.log({"step": 4, "loss": 0.25}, 4)
    tracker.finish()


NUMBERS = {"loss": 0.5, "learning_rate": 1e-3, "validation_loss": 0.25}
"""What is a number in LINE, but for the step."""


def test_wandb_gets_numbers_offline(library, tmp_path):
    wandb, folder = library("wandb"), tmp_path / "tracking" / NODE
    track("wandb", folder)
    options = {"project": "copra", "name": NODE, "dir": str(folder), "mode": "offline"}
    assert wandb.calls == [("init", options), ("log", NUMBERS, 3), ("log", {"loss": 0.25}, 4), ("finish",)]
    assert folder.is_dir()


def test_wandb_goes_online_for_whom_says_so(library, tmp_path, monkeypatch):
    wandb = library("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    track("wandb", tmp_path)
    assert wandb.calls[0][1]["mode"] == "online"


def test_trackio_writes_to_the_folder(library, tmp_path):
    trackio = library("trackio")
    track("trackio", tmp_path / NODE)
    options = {"project": "copra", "name": NODE, "resume": "allow", "embed": False}
    assert trackio.calls[0] == ("init", options | {"folder": str(tmp_path / NODE)})
    assert trackio.calls[1:] == [("log", NUMBERS, 3), ("log", {"loss": 0.25}, 4), ("finish",)]


def test_none_tracks_nothing(tmp_path):
    track(None, tmp_path / NODE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_library_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("copra.training.tracking.find_spec", lambda name: None)
    with pytest.raises(CopraError, match=f"{kind} is not installed. Run `pip install {kind}`"):
        Tracker(kind, tmp_path, NODE)


def test_a_tracker_that_does_not_start_is_told(library, tmp_path):
    library("wandb").init = None
    tracker = Tracker("wandb", tmp_path, NODE)
    with pytest.raises(CopraError, match="wandb could not be started"):
        tracker.log(LINE, 3)


def test_a_tracker_that_fails_later_does_not_stop_the_training(library, tmp_path, capsys):
    wandb = library("wandb")

    def broken(self, values, step=None):
        raise ConnectionError("the disk is full")

    wandb.Run.log = broken
    tracker = Tracker("wandb", tmp_path, NODE)
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    tracker.finish()
    assert (
        capsys.readouterr().err == "tracking: wandb failed and is left out from here on: the disk is full\n"
    )
    assert len(wandb.calls) == 1


def test_of_several_processes_the_first_one_tracks(library, tmp_path, monkeypatch):
    wandb = library("wandb")
    monkeypatch.setenv("RANK", "1")
    track("wandb", tmp_path / NODE)
    assert wandb.calls == []


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path / NODE)
    events = EventAccumulator(str(tmp_path / NODE))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(NUMBERS)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5), (4, 0.25)]
