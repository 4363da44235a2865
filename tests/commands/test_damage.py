"""What is cut short, edited, full or read-only: each verb says which file it is and what to do, and what was
there before stays as it was."""

import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from copra.cli import main
from helpers.tiny import DROP, SIZES

pytestmark = pytest.mark.slow

TRAINING = {
    "steps": 2,
    "batch_size": 8,
    "learning_rate": 3.0e-3,
    "num_validations": 1,
    "select_best_by": "loss",
}
STAGE = {"layouts": [{"skip": 0, "latents": 0}]}
SCORES = {"scoring": "passes", "objective": "cot", "importance": {"rows": 8}}
ROW = {"recipe": "base+cot+drop-1", "pruning": "drop-1", "parent_node": "cot", "node": "pruned"}
EVALUATION = {"task": "sums", "max_new_tokens": 4, "batch_size": 4}
CURVES = {"kind": "training_curves", "nodes": ["cot"], "methods": [["cot", "cot"]]}
# What each verb is told: settings and paths, in the order in which they feed each other.
VERBS = {
    "data": (
        {"task": {"kind": "word_sums", "train": 40, "valid": 8, "test": 10}},
        {"output": "data"},
    ),
    "base": (
        {"node": "base", "base": {"from_scratch": SIZES}, "seed": 0},
        {"output": "models/base", "data": "data"},
    ),
    "train": (
        {"node": "cot", "method": "cot", "stage": STAGE, "training": TRAINING, "seed": 0},
        {"output": "models/cot", "parent": "models/base", "data": "data", "state": "state"},
    ),
    "score": (
        SCORES,
        {"output": "scores/cot.parquet", "model": "models/cot", "data": "data", "state": "state"},
    ),
    "select": (
        {"prune": DROP},
        {"output": "plans/pruned.json", "parent": "models/cot", "scores": "scores/cot.parquet"},
    ),
    "prune": (
        {"node": "pruned"},
        {"output": "models/pruned", "parent": "models/cot", "plan": "plans/pruned.json", "data": "data"},
    ),
    "evaluate": (
        {"node": "pruned", **EVALUATION},
        {"output": "evaluations/pruned", "model": "models/pruned", "data": "data", "state": "state"},
    ),
    "evaluate another": (
        {"node": "cot", **EVALUATION},
        {"output": "evaluations/cot", "model": "models/cot", "data": "data", "state": "state"},
    ),
    "table": (
        {"kind": "before_fine_tuning", "pruned": [ROW]},
        {"output": "tables/before_fine_tuning.parquet", "evaluations": "evaluations"},
    ),
    "export": (
        {},
        {
            "csv": "tables/a.csv",
            "md": "tables/a.md",
            "tex": "tables/a.tex",
            "table": "tables/before_fine_tuning.parquet",
        },
    ),
    "figure": (
        CURVES,
        {"svg": "figures/a.svg", "png": "figures/a.png", "input": "models"},
    ),
}


def run(folder: Path, name: str) -> int:
    """The exit status of a verb in a folder."""
    settings, paths = VERBS[name]
    words = [word for option, path in paths.items() for word in (f"--{option}", str(folder / path))]
    return main([name.split()[0], "--settings", json.dumps(settings), *words])


def told(capsys, name: str) -> str:
    """The message at the end of a verb's output, behind its progress bars."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed[printed.rindex(f"copra {name.split()[0]}: ") :]


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder in which all verbs have run."""
    folder = tmp_path_factory.mktemp("finished")
    assert [run(folder, name) for name in VERBS] == [0] * len(VERBS)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "copy")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def set_json(*keys, value):
    """An edit by hand: one value in a JSON file."""

    def edit(path: Path) -> None:
        whole = part = json.loads(path.read_text())
        for key in keys[:-1]:
            part = part[key]
        assert part[keys[-1]] != value
        part[keys[-1]] = value
        path.write_text(json.dumps(whole, indent=1))

    return edit


def swap_tokens(path: Path) -> None:
    """Two tokens that change places: the model loads, and reads one for the other."""
    whole = json.loads(path.read_text())
    ids = whole["model"]["vocab"]
    first, second = list(ids)[-2:]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(whole))


MANIFEST = "models/cot/copra.json"
EDITED = "not as copra wrote it"
DAMAGES = [
    ("base", "data/train.parquet", cut, "not the file that train.json was written for"),
    ("base", "data/train.json", cut, "not valid JSON"),
    ("train", "data/valid.parquet", cut, "not the file that valid.json was written for"),
    ("train", "data/valid.json", cut, "not valid JSON"),
    ("evaluate", "data/test.parquet", cut, "not the file that test.json was written for"),
    ("evaluate", "data/test.json", cut, "not valid JSON"),
    ("evaluate", "data/test.parquet", Path.unlink, "no such file"),
    ("train", "models/base/model.safetensors", cut, "checksum"),
    ("evaluate another", "models/cot/config.json", cut, "checksum"),
    ("evaluate another", "models/cot/config.json", set_json("rms_norm_eps", value=0.1), "checksum"),
    ("evaluate another", "models/cot/generation_config.json", Path.unlink, "no such file"),
    ("evaluate another", "models/cot/tokenizer.json", cut, "checksum"),
    ("evaluate another", "models/cot/tokenizer.json", swap_tokens, "checksum"),
    ("train", "models/base/tokenizer_config.json", cut, "checksum"),
    ("evaluate another", "models/cot/chat_template.jinja", Path.touch, "one that transformers reads"),
    ("evaluate another", "models/cot/adapter_config.json", Path.touch, "one that transformers reads"),
    ("evaluate another", MANIFEST, cut, "not valid JSON"),
    ("evaluate another", MANIFEST, set_json("decoding", "latents", value=3), EDITED),
    ("evaluate another", MANIFEST, set_json("lineage", 0, "step", value="no_cot"), EDITED),
    ("evaluate another", MANIFEST, set_json("training_flops", value=1), EDITED),
    ("evaluate another", MANIFEST, set_json("weights", "sha256", value="0" * 64), EDITED),
    ("select", MANIFEST, set_json("typical_answer", "prompt", value=1), EDITED),
    ("score", MANIFEST, set_json("shape", "hidden", value=8), EDITED),
    ("select", "scores/cot.parquet", cut, "not the file that cot.json was written for"),
    ("select", "scores/cot.json", cut, "not valid JSON"),
    ("select", "scores/cot.json", set_json("made_by", "files", value=[]), EDITED),
    ("prune", "plans/pruned.json", cut, "not valid JSON"),
    ("prune", "plans/pruned.json", set_json("kept", "layers", value=[1]), EDITED),
    ("prune", "plans/pruned.json", set_json("parent", value="0" * 64), EDITED),
    ("table", "evaluations/cot/predictions.parquet", cut, "not a whole Parquet file"),
    ("table", "evaluations/cot/metrics.json", cut, "not valid JSON"),
    ("table", "evaluations/cot/metrics.json", set_json("accuracy", value=0.99), "changed by hand"),
    ("export", "tables/before_fine_tuning.parquet", cut, "not a whole Parquet file"),
    ("figure", "models/cot/training.jsonl", cut, "checksum"),
]


@pytest.mark.parametrize(("name", "file", "damage", "reason"), DAMAGES)
def test_a_damaged_file_is_named_and_nothing_else_is_touched(folder, capsys, name, file, damage, reason):
    damage(folder / file)
    before = files(folder)
    assert run(folder, name) == 1
    message = told(capsys, name)
    # A loader of several files, or a check of two, may know no more than their folder.
    named = (folder / file).parent if reason in ("cannot be loaded", "changed by hand") else folder / file
    assert message.startswith(f"copra {name.split()[0]}: {named}")
    assert reason in message
    assert re.search(r"run (snakemake )?again|Run the rule", message)
    assert files(folder) == before


def test_a_job_whose_damaged_input_is_made_again_makes_what_it_made_before(folder):
    before = files(folder)
    cut(folder / "plans" / "pruned.json")
    assert run(folder, "prune") == 1
    (folder / "plans" / "pruned.json").unlink()
    assert (run(folder, "select"), run(folder, "prune")) == (0, 0)
    assert files(folder) == before


def assert_told_and_unharmed(folder: Path, name: str, before: dict[str, bytes], message: str, reason: str):
    """The verb named a place below `folder` and the reason; of old files none is gone or changed."""
    assert message.startswith(f"copra {name.split()[0]}: {folder}")
    assert reason in message
    assert re.search(r"Free some space or check the permissions.*run again: (what|nothing)", message)
    found = files(folder)
    assert {path: found.get(path) for path in before} == before
    assert not [path for path in found if ".tmp-" in path]


WRITERS = ["data", "base", "train", "score", "select", "prune", "evaluate", "table", "export", "figure"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow_is_named(folder, capsys, name):
    """A limit of the process stands for the full disk: everybody may set one."""
    before = files(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        status = run(folder, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert_told_and_unharmed(folder, name, before, told(capsys, name), "File too large")


@pytest.fixture
def disk(finished, tmp_path):
    """A disk of two megabytes of its own that holds the finished run."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "copra-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own needs root, and the right to mount")
    try:
        yield shutil.copytree(finished, place / "run")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk to its last byte."""
    filler = folder.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filler


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_the_job_runs_when_there_is_space_again(disk, capsys, name):
    before = files(disk)
    filler = fill(disk)
    assert run(disk, name) == 1
    assert_told_and_unharmed(disk, name, before, told(capsys, name), "No space left on device")
    filler.unlink()
    assert run(disk, name) == 0
    assert files(disk) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_cannot_be_written_is_named(disk, capsys, name):
    before = files(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk.parent)], check=True)
    assert run(disk, name) == 1
    assert_told_and_unharmed(disk, name, before, told(capsys, name), "Read-only file system")
