"""The tables of a task: what goes in, what is left out, and what the record says about it."""

import hashlib
import os
from collections.abc import Iterator

import pandas
import pytest

from copra import files
from copra.errors import CopraError
from copra.tasks import Gsm8k, Task, WordSums
from copra.tasks.prepare import data_record, prepare, prepared, read_rows
from copra.tasks.task import SPLITS, BadRow, Row


class Listed(Task):
    """A task whose questions are given; "!" makes a bad row."""

    kind: str = "listed"
    train: list[str]
    valid: list[str]
    test: list[str]

    def rows(self) -> Iterator:
        for split in SPLITS:
            for number, question in enumerate(getattr(self, split), start=1):
                bad = BadRow(f"{split}.jsonl", number, "it is bad")
                yield split, bad if question == "!" else Row(question, (f"step {number}",), str(number))


def listed(train=("a?", "b?"), valid=("v?",), test=("t?",), **settings):
    return Listed(train=list(train), valid=list(valid), test=list(test), **settings)


def questions(folder, split):
    return [row.question for row in read_rows(folder / f"{split}.parquet")]


def test_tables_hold_every_row_with_its_id(tmp_path):
    prepare(listed(), tmp_path)
    frame = pandas.read_parquet(tmp_path / "train.parquet")
    assert list(frame.columns) == ["id", "question", "steps", "answer"]
    assert frame["id"].tolist() == [Row("a?", (), "").id, Row("b?", (), "").id]
    assert [list(steps) for steps in frame["steps"]] == [["step 1"], ["step 2"]]
    names = {f"{split}.{end}" for split in SPLITS for end in ("parquet", "json")}
    assert {path.name for path in tmp_path.iterdir()} == names


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
    bad = {"file": "train.jsonl", "row": 5, "reason": "it is bad"}
    left_out = {"train": (3, [bad], 1, 2), "valid": (2, [], 1, 1), "test": (1, [], 0, 0)}
    for split, (rows, dropped, duplicates, overlap) in left_out.items():
        record = data_record(tmp_path / f"{split}.parquet")
        assert record == {
            "task": "listed",
            "settings": {key: task.canonical()[key] for key in ("kind", "bad_rows", "limit", split)},
            "rows_sha256": prepared(task)[split].digest,
            "rows": rows,
            "dropped": dropped,
            "duplicates": duplicates,
            "overlap": overlap,
        }
        table = (tmp_path / f"{split}.parquet").read_bytes()
        summary = {"sha256": hashlib.sha256(table).hexdigest(), **record}
        assert files.read_sealed_json(tmp_path / f"{split}.json") == summary


def test_another_split_changes_nothing_but_the_questions_that_it_takes_away(tmp_path):
    """Shown by bytes, and by files that are left alone."""
    first = {"train": ("a?", "b?", "c?"), "valid": ("v?", "w?"), "test": ("t?", "u?")}

    def changed(**splits):
        prepare(listed(**first), tmp_path)
        before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
        prepare(listed(**{**first, **splits}), tmp_path)
        return {path.name for path in before if before[path] != (path.read_bytes(), path.stat().st_ino)}

    assert changed() == set()
    assert changed(test=("t?",)) == changed(limit={"test": 1}) == {"test.parquet", "test.json"}
    assert changed(test=("t?", "u?", "!"), bad_rows="drop") >= {"test.json"}
    assert changed(train=("a?", "d?")) == {"train.parquet", "train.json"}
    assert changed(test=("t?", "b?")) == {
        f"{split}.{end}" for split in ("train", "test") for end in ("parquet", "json")
    }


def test_the_digest_is_that_of_the_rows_in_their_order():
    def digests(**splits):
        return [prepared(listed(**splits))[split].digest for split in ("train", "valid", "test")]

    one = digests(train=("a?", "b?"))
    assert one == digests(train=("a?", "b?", "!"), bad_rows="drop", limit={"train": 9})
    assert [a == b for a, b in zip(one, digests(train=("b?", "a?")), strict=True)] == [False, True, True]
    line = '["a?",["step 1"],"1"]\n'
    assert digests(train=("a?",))[0] == hashlib.sha256(line.encode()).hexdigest()


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
    assert [data_record(tmp_path / f"{split}.parquet")["rows"] for split in SPLITS] == [2, 2, 1]


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
    table = tmp_path / "train.parquet"
    whole = table.read_bytes()
    frame = files.read_parquet(table)
    frame.loc[0, "answer"] = "7"
    edited = tmp_path / "edited.parquet"
    files.write_parquet(edited, frame, data_record(table))
    for content in (whole[:-20], edited.read_bytes()):
        table.write_bytes(content)
        with pytest.raises(CopraError, match=r"train\.parquet: not the file that train\.json was"):
            read_rows(table)
    with pytest.raises(CopraError, match=r"edited\.json: no such file"):
        read_rows(edited)
    with pytest.raises(CopraError, match=r"none\.parquet: no such file"):
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
    records = {split: data_record(tmp_path / f"{split}.parquet") for split in SPLITS}
    kept = {split: (record["rows"], record["overlap"]) for split, record in records.items()}
    assert kept == {"train": (6973, 500), "valid": (500, 0), "test": (1319, 0)}
    assert all(record["dropped"] == [] and record["duplicates"] == 0 for record in records.values())
    ids = [set(pandas.read_parquet(tmp_path / f"{split}.parquet")["id"]) for split in SPLITS]
    assert len(set.union(*ids)) == 7473 + 1319
