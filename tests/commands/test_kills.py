"""Every verb, killed (SIGKILL) whenever it is about to change what is on the disk, and run again.

What it leaves is whole or absent, and what it makes in the end is what an undisturbed run makes, byte for
byte. The verbs run in forks of one process that has imported torch already.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from itertools import count
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from copra.cli import main
from helpers.tiny import DROP, SIZES

pytestmark = pytest.mark.slow

FORKS = multiprocessing.get_context("forkserver")
HEAVY = ("pyarrow.parquet", "scipy.stats", "copra.training.loop", "copra.models.bases")
FORKS.set_forkserver_preload([*HEAVY, "copra.pruning.scoring.ablation"])
DELICATE = ("replace", "fsync", "unlink", "rmdir")
SECONDS = 120

BASE, COT, PRUNED = "models/llama@0", "models/llama@0+cot", "models/llama@0+cot+drop-1"
COCONUT = "models/llama@0+cot+coconut"
TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 3.0e-3, "num_validations": 1}
SCORES = {"importance": {"rows": 8, "validation_rows": 4, "greedy_removals": 1}, "objective": "cot"}
CURVE = {"model": "llama+cot", "unit": "layers", "metrics": ["cosine", "deepest"]}
CURVE |= {"remove": [1], "objectives": ["cot"]}
ANSWERS = {"max_new_tokens": 4, "batch_size": 4}
EVALUATION = {"task": "sums", **ANSWERS}
ROW = {"recipe": "llama+cot+drop-1", "pruning": "drop-1"}
# What each verb is told, by options, and what it makes; in the order in which they feed each other.
VERBS = {
    "data": {
        "settings": {"task": {"kind": "word_sums", "train": 40, "valid": 8, "test": 10}},
        "output": "data",
    },
    "base": {
        "settings": {"node": "llama@0", "base": {"from_scratch": SIZES}, "seed": 0},
        "data": "data",
        "output": BASE,
    },
    "train": {
        "settings": {
            "node": "llama@0+cot",
            "method": "cot",
            "stage": {"layouts": [{"skip": 0, "latents": 0}]},
            "training": TRAINING,
            "seed": 0,
        },
        "parent": BASE,
        "data": "data",
        "state": "state",
        "save-steps": 1,
        "output": COT,
    },
    "score": {
        "settings": {"scoring": "passes", **SCORES},
        "model": COT,
        "data": "data",
        "state": "state",
        "output": "scores/cot/passes.parquet",
    },
    "score greedily": {
        "settings": {"scoring": "layers.greedy_loss", **SCORES},
        "model": COT,
        "data": "data",
        "state": "state",
        "output": "scores/cot/layers.greedy_loss.parquet",
    },
    "select": {
        "settings": {"prune": DROP},
        "parent": COT,
        "scores": "scores/cot/passes.parquet",
        "output": "plans/drop-1.json",
    },
    "prune": {
        "settings": {"node": "llama@0+cot+drop-1"},
        "parent": COT,
        "plan": "plans/drop-1.json",
        "data": "data",
        "output": PRUNED,
    },
    "curve": {
        "settings": {"node": "llama@0+cot", "name": "layers", "curve": CURVE, **ANSWERS},
        "model": COT,
        "data": "data",
        "scores": "scores",
        "state": "state of curves",
        "output": "curves/layers.parquet",
    },
    "quantize": {
        "settings": {"node": "llama@0+cot+int8", "quantize": {"kind": "quantize", "weights": "int8"}},
        "parent": COT,
        "data": "data",
        "output": "models/llama@0+cot+int8",
    },
    "evaluate": {
        "settings": {"node": "llama@0+cot+drop-1", **EVALUATION},
        "model": PRUNED,
        "data": "data",
        "state": "state",
        "output": "evaluations/pruned",
    },
    "evaluate another": {
        "settings": {"node": "llama@0+cot", **EVALUATION},
        "model": COT,
        "data": "data",
        "state": "state",
        "output": "evaluations/cot",
    },
    "train with latents": {
        "settings": {
            "node": "llama@0+cot+coconut",
            "method": "coconut",
            "stage": {"thought": "hidden", "layouts": [{"latents": 2}]},
            "training": TRAINING,
            "seed": 0,
        },
        "parent": COT,
        "data": "data",
        "state": "state",
        "output": COCONUT,
    },
    "sweep-latents": {
        "settings": {"node": "llama@0+cot+coconut", **ANSWERS, "latents": [0, 1]},
        "model": COCONUT,
        "data": "data",
        "state": "state",
        "output": "evaluations/sweep.parquet",
    },
    "swap-latents": {
        "settings": {"node": "llama@0+cot+coconut", **ANSWERS, "latents_from": ["other", "zeros"]},
        "model": COCONUT,
        "data": "data",
        "state": "state",
        "output": "evaluations/swap.parquet",
    },
    "table": {
        "settings": {
            "kind": "before_fine_tuning",
            "pruned": [{**ROW, "parent_node": "cot", "node": "pruned"}],
        },
        "evaluations": "evaluations",
        "output": "tables/pruned.parquet",
    },
    "export": {
        "settings": {},
        "table": "tables/pruned.parquet",
        **{kind: f"tables/pruned.{kind}" for kind in ("csv", "md", "tex")},
    },
}
OUTPUTS = ("output", "csv", "md", "tex")


def words_of(name: str) -> list[str]:
    options = VERBS[name] | {"settings": json.dumps(VERBS[name]["settings"])}
    return [name.split()[0], *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def work(folder: Path, names: list[str], printed: Path, calls: int | None, by: int) -> None:
    """Run verbs in this process, and kill it by a signal before its `calls`-th next delicate call."""
    left = calls

    def deadly(call):
        def instead(*arguments, **options):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), by)
            left -= 1
            return call(*arguments, **options)

        return instead

    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    # Its own lock would be a semaphore that outlives the kill.
    tqdm.set_lock(threading.RLock())
    if calls is not None:
        for name in DELICATE:
            setattr(os, name, deadly(getattr(os, name)))
    os._exit(max(main(words_of(name)) for name in names))


def start(folder: Path, *names: str, calls: int | None = None, by: int = signal.SIGKILL):
    """A process that runs these verbs."""
    printed = folder.with_name(f"{folder.name}.log")
    process = FORKS.Process(target=work, args=(folder, names, printed, calls, by))
    process.start()
    return process


def run(folder: Path, *names: str, calls: int | None = None) -> int:
    """The exit code of a process that ran these verbs: 0, or -9 where it was killed."""
    process = start(folder, *names, calls=calls)
    return finish(process, folder)


def finish(process, folder: Path) -> int:
    printed = folder.with_name(f"{folder.name}.log")
    process.join(SECONDS)
    process.kill()
    assert process.exitcode in (0, -signal.SIGKILL), printed.read_text()
    return process.exitcode


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which all verbs have run undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder, *VERBS) == 0
    return folder


def places_of(name: str) -> list[str]:
    """The files or folders that a verb makes."""
    return [place for option, place in VERBS[name].items() if option in OUTPUTS]


def artifacts_of(name: str, made: dict[str, bytes]) -> list[set[str]]:
    """The files that a verb makes, those together that appear by one rename."""
    places = places_of(name)
    names = {path for path in made for place in places if path == place or path.startswith(f"{place}/")}
    return [names] if places[0].startswith("models/") else [{path} for path in names]


def assert_whole_or_absent(folder: Path, name: str, made: dict[str, bytes]) -> None:
    found = {path: data for path, data in files(folder).items() if ".tmp-" not in path}
    for artifact in artifacts_of(name, made):
        there = {path: data for path, data in found.items() if path in artifact}
        assert not there or there == {path: made[path] for path in artifact}
    # The lock file of a job that was killed stays, and locks nothing (copra.utils.locking).
    others = {path for path in found if not path.startswith("state/") and not path.endswith(".lock")}
    assert others <= made.keys()


FEEDS_ONLY = ("evaluate another", "train with latents")
KILLED = [(name, False) for name in VERBS if name not in FEEDS_ONLY]


@pytest.mark.parametrize(("name", "again"), [*KILLED, ("base", True)])
def test_a_verb_may_be_killed_over_and_over(finished, tmp_path, name, again):
    """Each time a little later; and `again`, where the folder that it makes is there already."""
    made = files(finished)
    folder = shutil.copytree(finished, tmp_path / "folder")
    for place in [] if again else places_of(name):
        (folder / place).rename(tmp_path / Path(place).name)
    if name in ("score greedily", "curve"):
        shutil.rmtree(folder / VERBS[name]["state"])
    # Those who write many files have many such moments, and a training has tests of its own (tests/training).
    for calls in count(step={"train": 3, "prune": 2, "quantize": 2}.get(name, 1)):
        if run(folder, name, calls=calls) == 0:
            break
        assert_whole_or_absent(folder, name, made)
    assert files(folder) == made
    # To write one file takes a flush, a rename and a flush of the folder.
    assert calls >= 3


TOGETHER = ("train", "score", "score greedily", "curve", "evaluate", "sweep-latents", "swap-latents")


@pytest.fixture
def unmade(finished, tmp_path):
    """A copy of the finished folder without what a verb makes, and keeps."""

    def make(name: str) -> Path:
        folder = shutil.copytree(finished, tmp_path / "folder")
        for place in places_of(name):
            (folder / place).rename(tmp_path / Path(place).name)
        shutil.rmtree(folder / VERBS[name]["state"], ignore_errors=True)
        return folder

    return make


@pytest.mark.parametrize("name", TOGETHER)
def test_two_at_once_make_what_one_makes(unmade, finished, name):
    folder = unmade(name)
    both = [start(folder, name) for _ in range(2)]
    assert [finish(process, folder) for process in both] == [0, 0]
    made, expected = files(folder), files(finished)
    artifacts = set().union(*artifacts_of(name, expected))
    assert {path: made[path] for path in artifacts} == {path: expected[path] for path in artifacts}
    assert not [path for path in made if path.endswith(".lock") or ".tmp-" in path]


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "killed"])
def test_a_second_training_waits_for_the_first_one(unmade, finished, end):
    """Which stops after its first steps, and goes on or is killed once the second one waits."""
    folder = unmade("train")
    printed = folder.with_name(f"{folder.name}.log")
    first = start(folder, "train", calls=16, by=signal.SIGSTOP)
    wait_until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, first)
    assert list(folder.glob("state/*/step-*"))
    try:
        second = start(folder, "train")
        wait_until(lambda: f"waiting for process {first.pid} of" in printed.read_text(), second)
    finally:
        os.kill(first.pid, end)
    codes = [finish(process, folder) for process in (first, second)]
    assert codes == [0 if end == signal.SIGCONT else -signal.SIGKILL, 0]
    made = files(folder)
    assert {
        path: data for path, data in files(finished).items() if path.startswith(COT)
    }.items() <= made.items()
    assert not [path for path in made if path.startswith("state/")]


def wait_until(there, process) -> None:
    end = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < end
        assert process.is_alive()
        time.sleep(0.01)
