"""Rows of files in every format, and of a data set on the Hub: columns, splits, and what cannot be used."""

import csv
import gzip
import io
import json
import sys
import types

import pandas
import pytest
from pydantic import ValidationError

from copra.plan.rows import preview_of, task_rows
from copra.schema.base import Base
from copra.tasks.prepare import data_record, prepare, prepared, read_rows
from copra.tasks.rows import Rows
from copra.tasks.task import BadRow, Row, question_id
from copra.utils.errors import CopraError

RECORDS = [
    {"body": "Ann has 2, Bob 3. ", "asked": "How many?", "proof": ["2 + 3", "is 5"], "target": 5},
    {"body": 'Cid says "no".', "asked": "Why?", "proof": ["So."], "target": 0.25},
]
EXPECTED = [
    Row("Ann has 2, Bob 3. How many?", ("2 + 3", "is 5"), "5"),
    Row('Cid says "no". Why?', ("So.",), "0.25"),
]
COLUMNS = {"question": ["body", "asked"], "steps": "proof", "answer": "target"}


def table(delimiter: str, end: str = "\n") -> bytes:
    """The records as CSV, with the steps as lines of one cell."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerow(RECORDS[0])
    writer.writerows([*each.values()] for each in [{**r, "proof": "\n".join(r["proof"])} for r in RECORDS])
    return file.getvalue().encode()


def parquet(records) -> bytes:
    file = io.BytesIO()
    pandas.DataFrame(records).to_parquet(file)
    return file.getvalue()


LINES = "\n".join(map(json.dumps, RECORDS)).encode()
FORMATS = {
    "rows.csv": table(","),
    "WINDOWS.CSV": b"\xef\xbb\xbf" + table(",", "\r\n"),
    "rows.tsv": table("\t"),
    "rows.tsv.gz": gzip.compress(table("\t")),
    "rows.csv.gz": gzip.compress(table(",")),
    "rows.jsonl": LINES,
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.json": json.dumps(RECORDS, indent=1).encode(),
    "rows.parquet": parquet(RECORDS),
}


@pytest.fixture
def read(tmp_path):
    """The rows in a test file of this content, and settings."""

    def rows(content, name="rows.jsonl", **settings):
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        task = Rows(test=str(tmp_path / name), **settings)
        return [row for split, row in task.rows() if split == "test"]

    return rows


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(read, name):
    assert read(FORMATS[name], name, columns=COLUMNS) == EXPECTED


@pytest.mark.parametrize(
    ("value", "how", "steps"),
    [
        ("One. Two!\n\nThree", "lines", ("One. Two!", "Three")),
        ("One.  Two!\n\nThree? 3.5 and\tfour", "sentences", ("One.", "Two!", "Three?", "3.5 and four")),
        (["One. Two!", " ", "Three\nfour"], "sentences", ("One. Two!", "Three four")),
        ("", "lines", ()),
        (None, "lines", ()),
        ([], "lines", ()),
    ],
)
def test_steps_are_a_list_or_a_text_that_is_split(read, value, how, steps):
    record = {"question": "q?", "why": value, "answer": "1"}
    (row,) = read([record], columns={"steps": "why"}, split_steps=how)
    assert row.steps == steps


def test_without_a_column_of_steps_rows_have_none(read, tmp_path):
    assert read([{"question": "q?", "steps": ["a"], "answer": 1}]) == [Row("q?", (), "1")]
    assert not Rows(test="rows.csv").has_steps
    assert Rows(test="rows.csv", columns={"steps": "steps"}).has_steps


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (18, "18"),
        (18.0, "18"),
        (1e16, "1" + 16 * "0"),
        (1e-05, "0.00001"),
        ("$1,080", "1080"),
        ("145.0", "145.0"),
    ],
)
def test_a_number_is_written_without_exponent_and_currency(read, written, answer):
    assert read([{"question": "q?", "answer": written}])[0].answer == answer


def test_texts_are_answers_as_they_are(read):
    rows = read(
        [{"question": "q?", "answer": " New\n York "}, {"question": "r?", "answer": 7}], answer_type="text"
    )
    assert [row.answer for row in rows] == ["New York", "7"]
    assert (Rows(test="a.csv", answer_type="text").answers, Rows(test="a.csv").answers) == ("text", "number")


def test_an_answer_stands_after_its_mark_and_the_steps_before_it(read):
    record = {"question": "q?", "answer": "Half of 48 is 24.\nSo #### it is 24.\n#### 1,024"}
    assert read([record], answer_after="####") == [Row("q?", (), "1024")]
    steps = ("Half of 48 is 24.", "So #### it is 24.")
    assert read([record], answer_after="####", columns={"steps": "answer"}) == [Row("q?", steps, "1024")]


@pytest.mark.parametrize(
    ("record", "settings", "reason"),
    [
        ({"question": " ", "answer": "1"}, {}, "empty question"),
        ({"question": None, "answer": "1"}, {}, "column 'question' is empty"),
        ({"answer": "1"}, {}, "column 'question' is empty"),
        (
            {"question": ["a?"], "answer": "1"},
            {},
            "column 'question' holds ['a?'], which is neither text nor",
        ),
        ({"question": "q?", "answer": True}, {}, "column 'answer' holds True, which is neither text nor"),
        ({"question": "q?", "answer": float("nan")}, {}, "column 'answer' is empty"),
        ({"question": "q?", "answer": "a dozen"}, {}, "the answer 'a dozen' is not a number"),
        ({"question": "q?", "answer": " "}, {"answer_type": "text"}, "empty answer"),
        ({"question": "q?", "answer": "a ### b"}, {"answer_type": "text"}, "has '###' in it"),
        ({"question": "q?", "answer": "24"}, {"answer_after": "####"}, "no '####' in column 'answer'"),
        ({"question": "q\ud800?", "answer": "1"}, {}, "half of a surrogate pair"),
        (
            {"question": "q?", "answer": 1, "why": [1]},
            {"columns": {"steps": "why"}},
            "column 'why' holds neither a text nor a list of texts",
        ),
        (7, {}, "not a JSON object"),
    ],
)
def test_a_bad_row_says_where_and_why(read, tmp_path, record, settings, reason):
    good = {"question": "a?", "answer": f"{settings.get('answer_after', '')} 1", "why": "so"}
    first, bad, last = read([good, record, {**good, "question": "b?"}], **settings)
    assert (first.question, last.question) == ("a?", "b?")
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.row) == (str(tmp_path / "rows.jsonl"), 2)
    assert reason in bad.reason


def test_a_row_of_a_table_with_another_number_of_fields_is_bad(read):
    content = "question,answer\na?,1\nb?\nc?,3,4\nd?,4\n"
    found = read(content, "rows.csv")
    assert [getattr(row, "reason", row) for row in found] == [
        Row("a?", (), "1"),
        "column 'answer' is empty",
        "more fields than the first line has names",
        Row("d?", (), "4"),
    ]
    assert [row.row for row in found if isinstance(row, BadRow)] == [2, 3]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_column_that_no_row_has_is_named_with_those_that_exist(read, tmp_path, name):
    with pytest.raises(CopraError) as caught:
        read(FORMATS[name], name, columns={**COLUMNS, "answer": "gold"})
    assert str(caught.value) == (
        f"columns: {tmp_path / name} has no column 'gold'. Name one that it has: body, asked, proof, target."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,question\n1,2\n", "has column 'question' twice. Rename one"),
        (b"question,answer\n\xff,2\n", "is not UTF-8 text"),
        (b'question,answer\n"a,2\n', "cannot be read as CSV"),
        (parquet(RECORDS), "is not UTF-8 text"),
        (b"PK\x03\x04", "is a zip archive"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(read, tmp_path, content, message):
    with pytest.raises(CopraError, match=message) as caught:
        read(content, "rows.csv")
    assert str(caught.value).startswith(f"test: {tmp_path / 'rows.csv'} ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no rows are named; give train, valid or test"),
        (
            {"train": "a", "valid": "b", "validation_share": 0.1},
            "validation_share: nothing is drawn where 'valid'",
        ),
        ({"test": "a", "validation_share": 0.1}, "validation_share: there are no rows to draw from"),
        (
            {"train": "a", "test_share": 0.5, "validation_share": 0.5},
            "test_share: with validation_share it leaves",
        ),
        ({"test": "a", "hub_revision": "main"}, "hub_revision: only a data set on the Hub has one"),
        ({"test": "a", "columns": {"question": []}}, "at least 1 item"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Rows(**settings)


def drawn(tmp_path, questions, **shares):
    """The questions of each split that are drawn from a file of training rows."""
    records = [{"question": question, "answer": 1} for question in questions]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = {"train": [], "valid": [], "test": []}
    for split, row in Rows(train=str(tmp_path / "all.jsonl"), **shares).rows():
        found[split].append(row.question)
    return found


def test_splits_are_drawn_by_the_hash_of_the_question_alone(tmp_path):
    questions = [f"question {number}?" for number in range(400)]
    place = {question: int(question_id(question), 16) / 2**64 for question in questions}
    shares = {"validation_share": 0.1, "test_share": 0.25}
    found = drawn(tmp_path, questions, **shares)
    assert found == {
        "test": [q for q in questions if place[q] < 0.25],
        "valid": [q for q in questions if 0.25 <= place[q] < 0.35],
        "train": [q for q in questions if place[q] >= 0.35],
    }
    assert (len(found["test"]), len(found["valid"])) == (
        pytest.approx(100, abs=25),
        pytest.approx(40, abs=20),
    )
    again = drawn(tmp_path, questions[::-1][:300], **shares)
    assert all(set(again[split]) <= set(found[split]) for split in found)
    fewer = drawn(tmp_path, questions, test_share=0.25)
    assert (fewer["test"], fewer["valid"]) == (found["test"], [])


def test_the_splits_are_those_that_are_given_or_drawn():
    assert Rows(test="a").splits == ("test",)
    assert Rows(train="a", valid="b").splits == ("train", "valid")
    assert Rows(train="a", validation_share=0.1, test_share=0.1).splits == ("train", "valid", "test")


def test_a_test_set_alone_is_prepared_without_the_other_splits(tmp_path):
    records = [{"question": f"{n}?", "answer": n} for n in (1, 2, 2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    prepare(Rows(test=str(tmp_path / "rows.jsonl")), tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"test.json", "test.parquet"}
    assert read_rows(tmp_path / "data" / "test.parquet") == [Row("1?", (), "1"), Row("2?", (), "2")]
    assert data_record(tmp_path / "data" / "test.parquet")["duplicates"] == 1
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(CopraError, match="the test split has no rows"):
        prepared(Rows(test=str(tmp_path / "rows.jsonl")))


def test_a_task_without_steps_is_no_task_with_too_few_of_them(tmp_path):
    records = [{"question": f"{n}?", "answer": n, "why": ""} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    shares = {"train": str(tmp_path / "rows.jsonl"), "validation_share": 0.2, "test_share": 0.2}
    assert prepared(Rows(**shares))["train"].record["without_steps"] > 10
    with pytest.raises(CopraError, match=r"rows have no steps, more than max_rows_without_steps"):
        prepared(Rows(**shares, columns={"steps": "why"}))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` package: records what is asked of it."""
    asked = []
    splits = {"train": RECORDS, "extra": RECORDS[:1]}

    def load_dataset(name, config=None, revision=None):
        asked.append((name, config, revision))
        if name != "some/set":
            raise ConnectionError("no route")
        return splits

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_rows_from_the_hub_by_the_names_of_its_splits(hub):
    task = Rows(hub_name="some/set", hub_subset="hard", hub_revision="abc", test="train", columns=COLUMNS)
    assert list(task.rows()) == [("test", row) for row in EXPECTED]
    assert hub == [("some/set", "hard", "abc")]
    assert (task.is_local, task.files()) == (False, {})
    bad = Rows(hub_name="some/set", test="extra", columns={**COLUMNS, "answer": "body"})
    (_, row) = next(bad.rows())
    assert str(row).startswith("some/set, split extra, row 1: the answer 'Ann has 2")


def test_what_the_hub_does_not_have_is_named(hub):
    with pytest.raises(CopraError, match=r"test: 'some/set' has no split 'test' \(known: extra, train\)"):
        list(Rows(hub_name="some/set", test="test", columns=COLUMNS).rows())
    with pytest.raises(
        CopraError, match=r"columns: some/set, split train has no column 'question'\. .*: body, "
    ):
        list(Rows(hub_name="some/set", test="train").rows())
    with pytest.raises(
        CopraError, match=r"hub_name: 'some/where' could not be loaded .*no route.*hub_revision"
    ):
        list(Rows(hub_name="some/where", test="test").rows())


def test_rows_on_the_hub_are_guessed_before_they_are_fetched(tmp_path):
    task = Rows(hub_name="some/set", test="train", limit={"test": 100})
    found = task_rows("told", task, preview_of("told", task, tmp_path), Base(path="some/model"), None)
    assert (found.sizes, found.counted) == ({"train": 0, "valid": 0, "test": 100}, False)
    assert found.rows["test"][0].steps == []


def test_the_rows_of_a_split_on_the_hub_depend_on_later_splits_and_on_those_that_they_are_drawn_from():
    task = Rows(hub_name="some/set", train="train", test="train", validation_share=0.1)
    given = [
        {key for key in ("train", "valid", "test") if task.concerning(split).get(key)}
        for split in task.splits
    ]
    assert given == [{"train", "test"}, {"train", "test"}, {"test"}]
