import json
import sys

import pytest

from copra.pruning.scoring.text import read_text, text_batches, text_name
from copra.schema.scoring import Text
from copra.utils.errors import CopraError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "passages.txt"
    path.write_text("1 + 2\n\n  \n 3 + 4 = 7 \n5\n6 + 1 = 7\n", encoding="utf-8")
    return path


@pytest.fixture
def dataset(tmp_path):
    """A data set as a local folder, which the library reads as it reads one of the Hub."""
    folder = tmp_path / "texts"
    folder.mkdir()
    records = [{"body": text, "number": i} for i, text in enumerate(["1 + 2", "", "3 + 4", "5 + 6"])]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def test_a_file_has_one_passage_a_line(file, monkeypatch):
    assert read_text(Text(file=str(file)), 10) == ["1 + 2", "3 + 4 = 7", "5", "6 + 1 = 7"]
    assert read_text(Text(file=str(file)), 2) == ["1 + 2", "3 + 4 = 7"]
    monkeypatch.setenv("TEXTS", str(file.parent))
    assert read_text(Text(file="${TEXTS}/passages.txt"), 1) == ["1 + 2"]


def test_a_data_set_is_read_from_its_start(dataset):
    assert read_text(Text(dataset=dataset, column="body"), 2) == ["1 + 2", "3 + 4"]
    assert read_text(Text(dataset=dataset, column="body"), 9) == ["1 + 2", "3 + 4", "5 + 6"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "no column of text named 'text'; its columns are body, number"),
        ({"column": "number"}, "no column of text named 'number'"),
        ({"column": "body", "split": "validation"}, "split 'validation'"),
        ({"dataset": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_named(dataset, changes, named):
    with pytest.raises(CopraError, match=r"importance\.text") as error:
        read_text(Text(**{"dataset": dataset, **changes}), 3)
    assert named in str(error.value)


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    missing, binary, blank = (tmp_path / name for name in ("missing", "binary", "blank"))
    binary.write_bytes(b"\xff\xfe\xff")
    blank.write_text("\n \n")
    for path, reason in ((missing, "cannot be read"), (binary, "UTF-8"), (blank, "no text")):
        with pytest.raises(CopraError, match=reason) as error:
            read_text(Text(file=str(path)), 3)
        assert str(path) in str(error.value)


def test_no_code_of_a_data_set_is_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("import sys; sys.modules['was_run'] = sys")
    with pytest.raises(CopraError):
        read_text(Text(dataset=str(folder)), 1)
    assert "was_run" not in sys.modules


def test_batches_worked_out(word_tokenizer):
    texts = ["1 + 2", "3 + 4 = 7", "5", "4 and 1 and 2 and 3"]
    batches = list(text_batches(word_tokenizer, texts, 2, 5))
    words = [["1", "+", "2"], ["3", "+", "4", "=", "7"], ["4", "and", "1", "and", "2"]]
    ids = [word_tokenizer.convert_tokens_to_ids(each) for each in words]
    pad = word_tokenizer.pad_token_id
    assert [batch.ids for batch in batches] == [["0", "1"], ["3"]], "a single token predicts nothing"
    assert batches[0].tokens.tolist() == [[*ids[0], pad, pad], ids[1]]
    assert batches[0].mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batches[0].labels.tolist() == [[-100, *ids[0][1:], -100, -100], [-100, *ids[1][1:]]]
    assert batches[1].tokens.tolist() == [ids[2]]
    assert batches[1].labels.tolist() == [[-100, *ids[2][1:]]]
    assert not any(batch.max_latents for batch in batches)


def test_the_name_depends_on_passages_order_and_length():
    names = {
        text_name(["a", "b"], 5),
        text_name(["b", "a"], 5),
        text_name(["a"], 5),
        text_name(["a", "b"], 6),
    }
    assert len(names) == 4
    assert {len(name) for name in names} == {16}
    assert text_name(("a", "b"), 5) in names
