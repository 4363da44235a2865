"""Row ids, paths from the environment, and the registry."""

import hashlib
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from copra.tasks import TASKS, Gsm8k, Task, WordSums
from copra.tasks.modular import Modular
from copra.tasks.prosqa import Prosqa
from copra.tasks.registry import AnyTask
from copra.tasks.task import BadRow, Row, expand_path, question_id
from copra.utils.errors import CopraError


def test_an_id_depends_on_the_words_of_the_question_alone():
    expected = hashlib.sha256(b"How many  apples?".replace(b"  ", b" ")).hexdigest()[:16]
    assert question_id("How many  apples?\n") == expected
    assert Row("How many apples?", ("1 + 1 = 2",), "2").id == expected
    assert question_id("How many Apples?") != expected


def test_a_bad_row_reads_as_a_sentence():
    assert str(BadRow("train.jsonl", 7, "empty question")) == "train.jsonl, row 7: empty question"


def test_paths_are_filled_in_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_DATA", "/data")
    monkeypatch.setenv("HOME", "/home/ann")
    assert expand_path("train", "${SOME_DATA}/a.jsonl") == Path("/data/a.jsonl")
    assert expand_path("train", "$SOME_DATA/a.jsonl") == Path("/data/a.jsonl")
    assert expand_path("train", "~/a.jsonl") == Path("/home/ann/a.jsonl")
    assert expand_path("train", "a/b.jsonl") == Path("a/b.jsonl")


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_named(monkeypatch, value):
    monkeypatch.delenv("SOME_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_DATA", value)
    with pytest.raises(CopraError, match=r"^valid: .*environment variable SOME_DATA, which is not set"):
        expand_path("valid", "${SOME_DATA}/a.jsonl")


def test_the_registry_is_keyed_by_kind():
    assert {Gsm8k, WordSums} < set(TASKS.values())
    for kind, task in TASKS.items():
        assert task.model_fields["kind"].default == kind
        assert issubclass(task, Task)


def test_the_kind_chooses_the_task():
    adapter = TypeAdapter(AnyTask)
    assert adapter.validate_python({"kind": "word_sums", "seed": 3}) == WordSums(seed=3)
    assert adapter.validate_python({"kind": "gsm8k"}) == Gsm8k()
    with pytest.raises(ValidationError, match=r"'gsm8k', .*'word_sums'"):
        adapter.validate_python({"kind": "riddles"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({"kind": "gsm8k", "max_steps": 3})


def test_the_accuracy_of_guessing_is_known_where_questions_limit_the_answers():
    for task in (Prosqa(train=1, valid=1, test=400), Modular(modulus=5, train=1, valid=1, test=400)):
        rows = [row for split, row in task.rows() if split == "test"]
        # One of two concepts, or of five numbers, taken each time.
        first = [row.question.split()[-3] if task.kind == "prosqa" else "3" for row in rows]
        right = sum(
            row.answer.split()[-1].strip(".") == guess for row, guess in zip(rows, first, strict=True)
        )
        assert right / len(rows) == pytest.approx(task.chance, abs=0.08)
    assert WordSums().chance is None
