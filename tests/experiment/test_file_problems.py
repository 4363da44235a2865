"""Files that a config names: `copra check` tells which are not there."""

import copy

import pytest

from copra.experiment.config import parse
from copra.experiment.file_problems import check_files
from copra.utils.errors import CopraError
from helpers.tiny import tiny_config

ROWS = {"kind": "gsm8k", "source": "files", "train": "train.jsonl", "test": "test.jsonl"}
CONFIG = tiny_config(
    task="words",
    tasks={"words": ROWS},
    steps__ask={"kind": "few_shot", "file": "examples.jsonl"},
    recipes=[["cot", "ask"]],
    importance={"objective": "text", "text": {"file": "text.txt"}},
)
FILES = ("train.jsonl", "test.jsonl", "examples.jsonl", "text.txt")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with all files that the config names."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


def problems(config=CONFIG):
    with pytest.raises(CopraError) as caught:
        check_files(parse(config))
    return str(caught.value).split("\n")


def test_nothing_is_said_where_all_files_are_there(place):
    check_files(parse(CONFIG))


def test_each_file_that_is_missing_has_a_line_with_its_key(place):
    for name in FILES:
        (place / name).unlink()
    (place / "text.txt").mkdir()
    assert problems() == [
        "tasks.words: train.jsonl is not there. Correct the path, or fetch the file.",
        "tasks.words: test.jsonl is not there. Correct the path, or fetch the file.",
        "steps.ask: examples.jsonl is not there. Correct the path, or fetch the file.",
        "importance.text: text.txt is a folder. Correct the path, or fetch the file.",
    ]


def test_variables_are_filled_in_and_named_where_they_are_not_set(place, monkeypatch):
    config = copy.deepcopy(CONFIG)
    config["tasks"]["words"]["train"] = "${SOME_DATA}/train.jsonl"
    config["bases"]["other"] = {"path": "${SOME_MODELS}/base"}
    monkeypatch.delenv("SOME_DATA", raising=False)
    monkeypatch.delenv("SOME_MODELS", raising=False)
    task, base = problems(config)
    assert task.startswith(
        "tasks.words.train: '${SOME_DATA}/train.jsonl' needs the environment variable SOME_DATA"
    )
    assert base.startswith(
        "bases.other.path: '${SOME_MODELS}/base' needs the environment variable SOME_MODELS"
    )
    monkeypatch.setenv("SOME_DATA", str(place))
    monkeypatch.setenv("SOME_MODELS", str(place))
    (missing,) = problems(config)
    assert missing.startswith("bases.other.path: '${SOME_MODELS}/base' is not there.")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("a" * 256, "is longer than any path may be. Shorten it"),
        ("é" * 128, "is longer than any path may be. Shorten it"),
        ("a/" * 2048, "is longer than any path may be. Shorten it"),
        ("~no.such.user/a", "names a user's folder that is not known. Write the whole path"),
    ],
    ids=["name", "bytes", "path", "user"],
)
def test_paths_that_systems_do_not_even_look_for_are_refused_wherever_they_stand(path, problem):
    config = copy.deepcopy(CONFIG)
    config["tasks"]["words"]["train"] = path
    config["tasks"]["graphs"] = {"kind": "prosqa", "train": path, "valid": 1, "test": 1}
    config["bases"]["other"] = {"path": path}
    config["steps"]["ask"]["file"] = config["importance"]["text"]["file"] = path
    with pytest.raises(CopraError) as caught:
        parse(config)
    lines = str(caught.value).split("\n")
    keys = ["tasks.words.train", "tasks.graphs.train", "bases.other.path", "steps.ask.file"]
    for key, line in zip([*keys, "importance.text.file"], lines, strict=True):
        assert line.startswith(f"config.yaml: {key}: {problem} (got ")


def test_the_end_of_a_long_path_is_shown_and_what_no_line_can_hold_is_escaped(place):
    config = copy.deepcopy(CONFIG)
    config["tasks"]["words"]["train"] = "a\n/b.jsonl"
    config["steps"]["ask"]["file"] = "/a" * 1000 + "/end.jsonl"
    train, file = problems(config)
    assert train == "tasks.words: 'a\\n/b.jsonl' is not there. Correct the path, or fetch the file."
    assert file.startswith("steps.ask: ...")
    assert file.endswith("/end.jsonl is not there. Correct the path, or fetch the file.")
    assert len(file) < 300
