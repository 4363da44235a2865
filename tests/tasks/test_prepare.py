"""The tables of a task: what goes in, what is left out, and what the record says about it."""

import hashlib
import json
import os
from collections.abc import Iterator

import pandas
import pytest

from copra.cli import main
from copra.tasks import Gsm8k, Task, WordSums
from copra.tasks.prepare import data_record, prepare, prepared, read_rows
from copra.tasks.task import SPLITS, BadRow, Row
from copra.utils import files
from copra.utils.errors import CopraError


class Listed(Task):
    """A task whose questions are given, with an answer as in "a? = 7" or 1, and a step unless they begin with
    "~"; "!" makes a bad row."""

    kind: str = "listed"
    train: list[str]
    valid: list[str]
    test: list[str]

    def rows(self) -> Iterator:
        for split in SPLITS:
            for number, text in enumerate(getattr(self, split), start=1):
                question, _, answer = text.partition(" = ")
                steps = () if question.startswith("~") else (f"step {number}",)
                bad = BadRow(f"{split}.jsonl", number, "it is bad")
                yield split, bad if text == "!" else Row(question, steps, answer or "1")


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

    prepare(Odd(max_rows_without_steps=1), tmp_path)
    assert read_rows(tmp_path / "test.parquet") == [Row("Ève has £5\nin test?", (), "5")]


def test_the_record_tells_how_the_tables_came_about(tmp_path):
    task = listed(
        train=("a? = 3", "t?", "b?", "v?", "!", "a? = 3.0", "a? = 4", "a! ?", "~c?", "d?"),
        valid=("v?", "t?", "w?", "w?"),
        bad_rows="drop",
        limit={"train": 4},
        max_rows_without_steps=0.25,
    )
    prepare(task, tmp_path)
    assert questions(tmp_path, "train") == ["a?", "b?", "a! ?", "~c?"]
    assert questions(tmp_path, "valid") == ["v?", "w?"]
    assert questions(tmp_path, "test") == ["t?"]
    bad = {"file": "train.jsonl", "row": 5, "reason": "it is bad"}
    conflict = {
        "file": "usable rows of train",
        "row": 6,
        "reason": "the answer is '4', but in row 1 '3' to the same question, 'a?'",
    }
    left_out = {
        "train": (4, 1, [bad, conflict], 1, 1, 2, 1),
        "valid": (2, 0, [], 0, 1, 1, 0),
        "test": (1, 0, [], 0, 0, 0, 0),
    }
    for split, (rows, stepless, dropped, conflicts, duplicates, overlap, over) in left_out.items():
        record = data_record(tmp_path / f"{split}.parquet")
        assert record == {
            "task": "listed",
            "settings": {
                **{key: task.canonical()[key] for key in ("kind", "bad_rows", split)},
                "limit": {"train": 4} if split == "train" else {},
            },
            "rows_sha256": prepared(task)[split].digest,
            "rows": rows,
            "without_steps": stepless,
            "dropped": dropped,
            "conflicts": conflicts,
            "duplicates": duplicates,
            "overlap": overlap,
            "over_limit": over,
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


def test_training_questions_that_are_test_questions_in_disguise_are_left_out(tmp_path):
    disguised = (
        "IS THIS: the test",
        "is\u200b this the\u00a0test?",
        "is this the tést?",
        "is this the test 2?",
    )
    prepare(
        listed(train=("a?", *disguised), valid=("v?", "Is this the test"), test=("Is this the test?",)),
        tmp_path,
    )
    assert questions(tmp_path, "train") == ["a?", *disguised[2:]]
    assert questions(tmp_path, "valid") == ["v?"]
    assert data_record(tmp_path / "train.parquet")["overlap"] == 2


def test_one_question_with_two_answers_is_a_bad_row(tmp_path):
    with pytest.raises(CopraError) as caught:
        prepare(listed(train=("a? = 1/2", "b?", "a? = 0.5", "a? = 2"), test=("t? = 18", "t? = 20")), tmp_path)
    assert str(caught.value).splitlines()[:-1] == [
        "2 rows cannot be used:",
        "  usable rows of train, row 4: the answer is '2', but in row 1 '1/2' to the same question, 'a?'",
        "  usable rows of test, row 2: the answer is '20', but in row 1 '18' to the same question, 't?'",
    ]
    prepare(listed(test=("t? = 18", "t? = 20"), bad_rows="drop"), tmp_path)
    assert [row.answer for row in read_rows(tmp_path / "test.parquet")] == ["18"], "the first one stays"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_too_many_rows_without_steps_are_refused(tmp_path, split):
    rows = ("w?", "~x?", "~y?", "z?")
    with pytest.raises(CopraError) as caught:
        prepare(listed(**{split: rows}), tmp_path)
    assert str(caught.value) == (
        f"{split}: 2 of 4 rows have no steps, more than max_rows_without_steps 0.1 allows; of them CoT would "
        "learn to answer at once. Give rows with steps. Or raise max_rows_without_steps (1 allows all)."
    )
    assert not list(tmp_path.iterdir()), "nothing may be written"
    prepare(listed(**{split: rows}, max_rows_without_steps=0.5), tmp_path)
    with pytest.raises(CopraError, match="2 of 3 rows have no steps"):
        prepare(listed(**{split: rows}, max_rows_without_steps=0.33, limit={split: 3}), tmp_path)
    assert data_record(tmp_path / f"{split}.parquet")["without_steps"] == 2


@pytest.mark.parametrize(("share", "allowed"), [(0, 0), (0.01, 1), (0.25, 1), (0.26, 2), (1, 4)])
def test_the_share_is_rounded_up_to_a_row(tmp_path, share, allowed):
    """So that one of a few rows, as in a quick trial, is no reason to stop."""
    for without in range(5):
        rows = [f"{'~' * (number < without)}{number}?" for number in range(4)]
        task = listed(train=rows, max_rows_without_steps=share)
        if without <= allowed:
            assert prepared(task)["train"].record["without_steps"] == without
        else:
            with pytest.raises(CopraError, match=f"{without} of 4 rows have no steps"):
                prepared(task)


def test_a_test_question_needs_no_steps(tmp_path):
    prepare(listed(test=("~t?",), max_rows_without_steps=0), tmp_path)
    assert data_record(tmp_path / "test.parquet")["without_steps"] == 1


@pytest.mark.parametrize(("steps", "advice"), [("equations", True), ("sentences", False)])
def test_gsm8k_without_equations_names_the_setting_that_helps(tmp_path, steps, advice):
    """45 of 45 solutions in words were taken for rows without steps, and CoT trained as no-CoT."""
    for split in SPLITS:
        row = {"answer": "Half of 48 is 24.\n#### 24" if advice else "#### 24"}
        lines = [json.dumps({"question": f"{split} {number}?", **row}) for number in range(45)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in SPLITS}
    with pytest.raises(CopraError, match=r"^train: 45 of 45 rows have no steps") as caught:
        prepare(Gsm8k(source="files", steps=steps, **paths), tmp_path)
    assert ("Write steps: sentences" in str(caught.value)) == advice
    if advice:
        prepare(Gsm8k(source="files", steps="sentences", **paths), tmp_path)


def test_what_is_left_out_is_printed_split_by_split(tmp_path, capsys):
    rows = [json.dumps({"question": f"{n}?", "answer": f"<<1+1=2>> #### {n}"}) for n in range(3000)]
    repeated = ['{"question": "0?", "answer": "<<1+1=2>> #### 0"}', '{"question": "0?", "answer": "#### 7"}']
    for split, lines in (
        ("train", [*rows, *repeated, "{"]),
        ("valid", ["3?", "x?"]),
        ("test", ["1?", "2", "y?"]),
    ):
        if split != "train":
            lines = [json.dumps({"question": text, "answer": "<<1+1=2>> #### 1"}) for text in lines]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in SPLITS}
    task = Gsm8k(source="files", bad_rows="drop", limit={"test": 2}, **paths)
    settings = json.dumps({"task": task.canonical()})
    assert main(["data", "--settings", settings, "--output", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 2,997 rows, without steps 0; left out: bad 1, conflicting duplicates 1, duplicates 1, "
        "overlaps with a later split 3, over the limit 0",
        "valid: 2 rows, without steps 0; left out: bad 0, conflicting duplicates 0, duplicates 0, "
        "overlaps with a later split 0, over the limit 0",
        "test: 2 rows, without steps 0; left out: bad 0, conflicting duplicates 0, duplicates 0, "
        "overlaps with a later split 0, over the limit 1",
    ]


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


@pytest.mark.slow
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
