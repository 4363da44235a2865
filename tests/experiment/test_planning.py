"""What is wrong with the user's files, in copra's words alone where Snakemake would add its own."""

from types import SimpleNamespace

import pytest
from snakemake import rules

from copra.experiment.config import parse
from copra.experiment.planning import tell_problems_plainly
from copra.utils.errors import CopraError
from helpers.tiny import tiny_config

FILES = {"kind": "gsm8k", "source": "files", "train": "train.jsonl", "test": "test.jsonl"}
CONFIG = tiny_config(task="words", tasks={"words": FILES})
RULE = SimpleNamespace(name="data", lineno=7, snakefile="data.smk", workflow=SimpleNamespace(linemaps={}))


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Says how Snakemake words an error of a rule's function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "InputFunctionException", rules.InputFunctionException)
    tell_problems_plainly(parse(CONFIG))
    return lambda error: str(rules.InputFunctionException(error, rule=RULE, wildcards={"task": "words"}))


def test_all_missing_files_are_told_at_once(told):
    lines = told(CopraError("train.jsonl: cannot be read.")).split("\n")
    assert [line.split(". ")[0] for line in lines] == [
        "tasks.words: train.jsonl is not there",
        "tasks.words: test.jsonl is not there",
    ]


def test_what_else_is_wrong_is_told_as_it_is(told, tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    assert told(CopraError("1 row cannot be used:\n  row 3")) == "1 row cannot be used:\n  row 3"


def test_errors_of_the_code_are_told_as_ever(told):
    assert all(word in told(KeyError("split")) for word in ("KeyError: 'split'", "task=words"))
