"""The tables of a task: what goes in, what is left out, and what the record says about it."""

import os
from collections.abc import Iterator

import pandas
import pytest

from copra import files
from copra.errors import CopraError
from copra.tasks import Gsm8k, Task, WordSums
from copra.tasks.prepare import data_record, prepare, read_rows
from copra.tasks.task import BadRow, Row


class Listed(Task):
    """A task whose rows are given, for example {"train": ["a?", "b?"]}; "!" makes a bad row."""

    kind: str = "listed"
    given: dict[str, list[str]]

    def rows(self) -> Iterator:
        for split, questions in self.given.items():
            for number, question in enumerate(questions, start=1):
                bad = BadRow(f"{split}.jsonl", number, "it is bad")
                yield split, bad if question == "!" else Row(question, (f"step {number}",), str(number))


def listed(train=("a?", "b?"), valid=("v?",), test=("t?",), **settings):
    return Listed(given={"train": list(train), "valid": list(valid), "test": list(test)}, **settings)


def questions(folder, split):
    return [row.question for row in read_rows(folder / f"{split}.parquet")]


def test_tables_hold_every_row_with_its_id(tmp_path):
    prepare(listed(), tmp_path)
    frame = pandas.read_parquet(tmp_path / "train.parquet")
    assert list(frame.columns) == ["id", "question", "steps", "answer"]
    assert frame["id"].tolist() == [Row("a?", (), "").id, Row("b?", (), "").id]
    assert [list(steps) for steps in frame["steps"]] == [["step 1"], ["step 2"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.parquet",
        "train.parquet",
        "valid.parquet",
    ]


def test_rows_come_back_as_they_were(tmp_path):
    task = WordSums(train=40, valid=10, test=10)
    prepare(task, tmp_path)
    for split in ("train", "valid", "test"):
        assert read_rows(tmp_path / f"{split}.parquet") == [
            row for where, row in task.rows() if where == split
        ]


def test_rows_without_steps_and_beyond_ascii_come_back(tmp_path):
    class Odd(Task):
        kind: str = "odd"

        def rows(self):
            for split in ("train", "valid", "test"):
                yield split, Row(f"Ève has £5\nin {split}?", (), "5")

    prepare(Odd(), tmp_path)
    assert read_rows(tmp_path / "test.parquet") == [Row("Ève has £5\nin test?", (), "5")]


def test_the_record_tells_how_the_tables_came_about(tmp_path):
    task = listed(
        train=("a?", "t?", "b?", "v?", "!", "a?", "a  ?"),
        valid=("v?", "t?", "w?", "w?"),
        bad_rows="drop",
    )
    prepare(task, tmp_path)
    assert questions(tmp_path, "train") == ["a?", "b?", "a  ?"]
    assert questions(tmp_path, "valid") == ["v?", "w?"]
    assert questions(tmp_path, "test") == ["t?"]
    for split in ("train", "valid", "test"):
        assert data_record(tmp_path / f"{split}.parquet") == {
            "task": "listed",
            "settings": task.canonical(),
            "rows": {"train": 3, "valid": 2, "test": 1},
            "dropped": [{"file": "train.jsonl", "row": 5, "reason": "it is bad"}],
            "duplicates": {"train": 1, "valid": 1, "test": 0},
            "overlap": 2,
            "overlap_valid": 1,
        }


def test_questions_that_differ_in_white_space_are_one(tmp_path):
    prepare(listed(train=("how  many?", "how many?", "the\n test?", "b?"), test=("the test?",)), tmp_path)
    assert questions(tmp_path, "train") == ["how  many?", "b?"]


def test_bad_rows_stop_with_one_error_that_lists_them_all(tmp_path):
    with pytest.raises(CopraError) as caught:
        prepare(listed(train=("a?", "!", "b?", "!"), test=("t?", "!")), tmp_path / "data")
    assert str(caught.value).splitlines() == [
        "3 rows cannot be used:",
        "  train.jsonl, row 2: it is bad",
        "  train.jsonl, row 4: it is bad",
        "  test.jsonl, row 2: it is bad",
        "Repair the data, or set bad_rows: drop to go on without them.",
    ]
    assert not (tmp_path / "data").exists(), "nothing may be written"


@pytest.mark.parametrize(("count", "more"), [(50, None), (51, "  and 1 more"), (70, "  and 20 more")])
def test_the_list_of_bad_rows_ends_after_fifty(tmp_path, count, more):
    with pytest.raises(CopraError) as caught:
        prepare(listed(train=["a?"] + ["!"] * count), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{count} rows cannot be used:"
    assert lines[50] == "  train.jsonl, row 51: it is bad"
    assert lines[51:-1] == ([more] if more else [])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_without_rows_is_an_error(tmp_path, split):
    with pytest.raises(CopraError, match=f"the {split} split has no rows"):
        prepare(listed(**{split: ()}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_empty_split_says_what_emptied_it(tmp_path):
    with pytest.raises(
        CopraError, match=r"train split has no rows \(1 rows.* bad; 2 of its rows .* later split"
    ):
        prepare(listed(train=("v?", "t?", "!"), bad_rows="drop"), tmp_path)


def test_a_limit_keeps_the_first_rows_that_are_left(tmp_path):
    task = listed(train=("t?", "a?", "a?", "b?", "c?"), valid=("v?", "w?"), limit={"train": 2, "valid": 5})
    prepare(task, tmp_path)
    assert questions(tmp_path, "train") == ["a?", "b?"]
    assert questions(tmp_path, "valid") == ["v?", "w?"]
    assert data_record(tmp_path / "test.parquet")["rows"] == {"train": 2, "valid": 2, "test": 1}


def test_a_limited_validation_split_returns_no_question_to_training(tmp_path):
    prepare(listed(train=("a?", "w?"), valid=("v?", "w?"), limit={"valid": 1}), tmp_path)
    assert questions(tmp_path, "train") == ["a?"]


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        prepare(WordSums(train=40, valid=10, test=10), tmp_path / folder)
    for split in ("train", "valid", "test"):
        first, second = (tmp_path / folder / f"{split}.parquet" for folder in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_a_table_cut_short_and_a_foreign_one_are_refused(tmp_path):
    prepare(listed(), tmp_path)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[:-20])
    with pytest.raises(CopraError, match="not a whole Parquet file"):
        read_rows(tmp_path / "train.parquet")
    files.write_parquet(tmp_path / "other.parquet", pandas.DataFrame({"question": ["a?"]}))
    with pytest.raises(CopraError, match="no column steps, answer"):
        read_rows(tmp_path / "other.parquet")
    with pytest.raises(CopraError, match="no such file"):
        read_rows(tmp_path / "none.parquet")


@pytest.mark.skipif(
    not os.environ.get("COPRA_DATA"), reason="COPRA_DATA does not name the folder of published files"
)
def test_published_validation_rows_leave_the_training_split(tmp_path):
    task = Gsm8k(
        source="files",
        train="${COPRA_DATA}/gsm8k/train.jsonl",
        valid="${COPRA_DATA}/icot/gsm8k_valid.txt",
        test="${COPRA_DATA}/gsm8k/test.jsonl",
    )
    prepare(task, tmp_path)
    record = data_record(tmp_path / "test.parquet")
    assert record["rows"] == {"train": 6973, "valid": 500, "test": 1319}
    assert (record["overlap"], record["overlap_valid"], record["dropped"]) == (500, 0, [])
    assert record["duplicates"] == {"train": 0, "valid": 0, "test": 0}
    ids = [set(pandas.read_parquet(tmp_path / f"{split}.parquet")["id"]) for split in record["rows"]]
    assert len(set.union(*ids)) == 7473 + 1319
