"""GSM8K from small files of both forms, and from the published files where they are at hand."""

import gzip
import json
import os
import re
import sys
import types
from pathlib import Path

import pandas
import pytest
from pydantic import ValidationError

from copra.tasks.gsm8k import Gsm8k
from copra.tasks.task import BadRow, Row, question_id
from copra.utils.errors import CopraError

NATALIA = {
    "question": "Natalia sold clips to 48 friends. How many?",
    "answer": (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "\n"
        "Natalia sold 48+24 = $<<48+24=72>>72 altogether.\n"
        "#### 72"
    ),
}


def row(question: str, answer: str = "1") -> str:
    return json.dumps({"question": question, "answer": f"#### {answer}"})


TRAIN, TEST = row("t?"), row("e?")


@pytest.fixture
def task_of(tmp_path):
    """Make a task from the text of its files; `train` and `test` have a row where not given."""

    def make(train=TRAIN, test=TEST, valid=None, suffix="jsonl", **settings):
        paths = {}
        for key, text in (("train", train), ("valid", valid), ("test", test)):
            if text is not None:
                paths[key] = str(tmp_path / f"{key}.{suffix}")
                Path(paths[key]).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Gsm8k(source="files", validation_rows=0, **paths, **settings)

    return make


def rows_of(task, split="train"):
    return [found for where, found in task.rows() if where == split]


def test_equations_keep_their_brackets(task_of):
    assert rows_of(task_of(json.dumps(NATALIA))) == [
        Row(NATALIA["question"], ("<<48/2=24>>", "<<48+24=72>>"), "72")
    ]


def test_sentences_lose_the_annotations(task_of):
    assert rows_of(task_of(json.dumps(NATALIA), steps="sentences"))[0].steps == (
        "Natalia sold 48/2 = 24 clips in May.",
        "Natalia sold 48+24 = $72 altogether.",
    )


def test_icot_text(task_of):
    text = "Q one?||<<4-2=2>> <<2/.5=4>> #### 4\nQ two?|| #### -1,000\r\n"
    assert rows_of(task_of(text, "e?||#### 1", suffix="txt")) == [
        Row("Q one?", ("<<4-2=2>>", "<<2/.5=4>>"), "4"),
        Row("Q two?", (), "-1000"),
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1,080", "1080"),
        ("109,200,000", "109200000"),
        ("-7", "-7"),
        (" 0.50 ", "0.50"),
        (".5", ".5"),
        ("1/2", "1/2"),
        ("1,234.5", "1234.5"),
        ("$1,080", "1080"),
        ("18 dollars", "18"),
        ("−7", "-7"),
        ("5 1/2", "5 1/2"),
    ],
)
def test_answers_are_bare_numbers(task_of, written, read):
    assert rows_of(task_of(row("t?", written)))[0].answer == read


def test_the_answer_follows_the_last_mark(task_of):
    text = json.dumps({"question": "q?", "answer": "#### 1 is <<1+0=1>>1\n#### 2"})
    assert rows_of(task_of(text)) == [Row("q?", ("<<1+0=1>>",), "2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "invalid JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"answer": "#### 1"}', "no key 'question'"),
        ('{"question": "q?"}', "no key 'answer'"),
        ('{"question": "q?", "answer": 1}', "'answer' is not a string"),
        ('{"question": null, "answer": "#### 1"}', "'question' is not a string"),
        ('{"question": " \\n", "answer": "#### 1"}', "empty question"),
        ('{"question": "q?", "answer": "It is 1."}', "no '####' before the answer"),
        ('{"question": "q?", "answer": "####"}', "the answer '' is not a number"),
        ('{"question": "q?", "answer": "#### a dozen"}', "the answer 'a dozen' is not a number"),
        ('{"question": "q?", "answer": "#### 1,2"}', "the answer '1,2' is not a number"),
        ('{"question": "q?", "answer": "#### 1 2"}', "the answer '1 2' is not a number"),
        ('{"question": "q?", "answer": "#### 1/0"}', "the answer '1/0' is not a number"),
        ('{"question": "q?", "answer": "#### 1,00"}', "the answer '1,00' is not a number"),
        ('{"question": "q\\ud800?", "answer": "#### 1"}', "half of a surrogate pair"),
        ("", "invalid JSON"),
        (b'{"question": "\xff", "answer": "#### 1"}', "not UTF-8 text (invalid start byte at byte 14)"),
    ],
)
def test_bad_json_rows_say_where_and_why(task_of, tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    task = task_of(b"\n".join([row("a?").encode(), line, row("b?").encode(), b""]))
    good, bad, after = rows_of(task)
    assert (good.question, after.question) == ("a?", "b?")
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.row) == (str(tmp_path / "train.jsonl"), 2)
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Q? <<1+1=2>> #### 2", "no '||' between question and steps"),
        ("||<<1+1=2>> #### 2", "empty question"),
        ("Q?||<<1+1=2>>", "no '####' before the answer"),
        ("5 6 * 7 4||1 + 2 #### 5 5 6", "the answer '5 5 6' is not a number"),
    ],
)
def test_bad_icot_rows_say_where_and_why(task_of, tmp_path, line, reason):
    task = task_of(f"a?||#### 1\n{line}\n", "e?||#### 1", suffix="txt")
    assert rows_of(task)[1] == BadRow(str(tmp_path / "train.txt"), 2, reason)


SHELF = {"question": "Shelf?", "steps": ["<<3*4=12>>", "<<12-5=7>>"], "answer": "7", "idx": 0}
TICKET = {"question": "Ticket?", "steps": ["<<6*7=42>>"], "answer": "42", "idx": 1}
COCONUT = [Row("Shelf?", ("<<3*4=12>>", "<<12-5=7>>"), "7"), Row("Ticket?", ("<<6*7=42>>",), "42")]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_as_coconut_publishes_it(task_of, indent):
    assert rows_of(task_of(json.dumps([SHELF, TICKET], indent=indent), suffix="json")) == COCONUT
    assert rows_of(task_of("[]", suffix="json")) == []


@pytest.mark.parametrize(
    ("record", "steps"),
    [
        ({"steps": ["<<6*7=42>>", "<< 42+0 = 42 >>"]}, ("<<6*7=42>>", "<<42+0 = 42>>")),
        ({"steps": []}, ()),
        ({"cot": "<<6*7=42>> <<42+0=42>>"}, ("<<6*7=42>>", "<<42+0=42>>")),
        ({"cot": ""}, ()),
        ({"cot": "Six is <<6*7=42>>42.", "answer": "#### 1,042"}, ("<<6*7=42>>",)),
    ],
)
def test_steps_beside_a_bare_answer(task_of, record, steps):
    answer = "1042" if "answer" in record else "42"
    record = {"question": "q?", "answer": "42", **record}
    assert rows_of(task_of(json.dumps(record))) == [Row("q?", steps, answer)]


def test_sentences_beside_a_bare_answer(task_of):
    record = {"question": "q?", "steps": ["Six by 7 is <<6*7=42>>42.", "So 42."], "answer": "42"}
    (found,) = rows_of(task_of(json.dumps(record), steps="sentences"))
    assert found.steps == ("Six by 7 is 42.", "So 42.")


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        ({"steps": None}, "equations", "'steps' is neither a text nor a list of texts"),
        ({"steps": [1]}, "equations", "'steps' is neither a text nor a list of texts"),
        ({"cot": {"a": 1}}, "equations", "'cot' is neither a text nor a list of texts"),
        ({"steps": ["Six by 7."]}, "equations", "no <<equation>> in its steps; write steps: sentences"),
        ({"cot": "<<6*7=42>>"}, "sentences", "equations only in its steps; write steps: equations"),
        ({"cot": "", "answer": 42}, "equations", "'answer' is not a string"),
        ({"cot": "", "answer": "forty"}, "equations", "the answer 'forty' is not a number"),
    ],
)
def test_bad_steps_say_why(task_of, record, kind, reason):
    record = {"question": "q?", "answer": "42", **record}
    (bad,) = rows_of(task_of(json.dumps(record), steps=kind))
    assert bad.reason == reason


def test_an_array_has_bad_rows_too(task_of):
    good, bad = rows_of(task_of(json.dumps([SHELF, 7])))
    assert (good, bad.row, bad.reason) == (
        COCONUT[0],
        2,
        "not a JSON object",
    )


def test_parquet(task_of, tmp_path):
    pandas.DataFrame([SHELF, TICKET]).to_parquet(tmp_path / "made")
    assert rows_of(task_of((tmp_path / "made").read_bytes(), suffix="parquet")) == COCONUT


def test_gzip(task_of):
    packed = [gzip.compress(text.encode()) for text in (json.dumps(NATALIA), TEST)]
    (found,) = rows_of(task_of(*packed, suffix="jsonl.gz"))
    assert found.answer == "72"
    packed = [gzip.compress(b"Q one?||<<4-2=2>> #### 2\n")] * 2
    assert rows_of(task_of(*packed, suffix="txt.gz")) == [Row("Q one?", ("<<4-2=2>>",), "2")]


def test_only_newlines_end_a_row(task_of):
    text = '{"question": "a\u2028b?", "answer": "#### 1"}'
    assert [found.question for found in rows_of(task_of(text))] == ["a\u2028b?"]


def test_a_byte_order_mark_and_empty_last_lines_are_no_rows(task_of):
    assert rows_of(task_of(b"\xef\xbb\xbf" + row("a?").encode() + b"\r\n\n \n")) == [Row("a?", (), "1")]
    assert rows_of(task_of(b"\n\n")) == []


def test_validation_rows_are_chosen_by_hash_whatever_the_order(task_of, tmp_path):
    questions = [f"question {number}?" for number in range(40)]
    lowest = set(sorted(questions, key=question_id)[:10])
    for order in (questions, questions[::-1]):
        task_of("\n".join(map(row, order)))
        task = Gsm8k(
            source="files",
            train=str(tmp_path / "train.jsonl"),
            test=str(tmp_path / "test.jsonl"),
            validation_rows=10,
        )
        assert [found.question for found in rows_of(task, "valid")] == [q for q in order if q in lowest]
        assert [found.question for found in rows_of(task)] == [q for q in order if q not in lowest]
        assert [found.question for found in rows_of(task, "test")] == ["e?"]


def test_a_validation_file_leaves_the_training_rows_alone(task_of):
    task = task_of("\n".join(map(row, "abc")), valid=row("v?"))
    task = task.model_copy(update={"validation_rows": 2})
    assert [found.question for found in rows_of(task)] == ["a", "b", "c"]
    assert [found.question for found in rows_of(task, "valid")] == ["v?"]


def test_paths_come_from_the_environment(task_of, tmp_path, monkeypatch):
    task_of()
    monkeypatch.setenv("GSM_FILES", str(tmp_path))
    task = Gsm8k(source="files", train="${GSM_FILES}/train.jsonl", test="${GSM_FILES}/test.jsonl")
    assert task.files() == {split: tmp_path / f"{split}.jsonl" for split in ("train", "test")}
    assert len(list(task.rows())) == 2
    assert "${GSM_FILES}" in task.canonical()["train"], "settings must not depend on the machine"
    monkeypatch.delenv("GSM_FILES")
    with pytest.raises(CopraError, match=r"^train: .*GSM_FILES, which is not set"):
        list(task.rows())


def test_a_missing_file_names_the_key_and_the_path(task_of, tmp_path):
    task = task_of(valid=row("v?"))
    (tmp_path / "valid.jsonl").unlink()
    with pytest.raises(CopraError, match=rf"^valid: {re.escape(str(tmp_path))}/valid.jsonl cannot be read"):
        list(task.rows())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "files"}, "source: files needs the path of a file under train and test"),
        ({"source": "files", "train": "a.jsonl"}, "source: files needs the path of a file under test"),
        ({"train": "a.jsonl"}, "train would be ignored with source: hub"),
        ({"valid": "a.txt", "steps": "sentences"}, "valid: a.txt is iCoT text, which holds equations only"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Gsm8k(**settings)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` package: records what is asked of it, and answers from `data_sets`."""
    asked, data_sets = [], {}

    def load_dataset(name, config=None, revision=None):
        asked.append((name, config))
        if name not in data_sets:
            raise ConnectionError("no route")
        configs = data_sets[name]
        if config is None and len(configs) == 1:
            return next(iter(configs.values()))
        if config not in configs:
            raise ValueError(f"BuilderConfig {config!r} not found. Available: {list(configs)}")
        return configs[config]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    rows = [NATALIA, {"question": "", "answer": "#### 1"}]
    data_sets["openai/gsm8k"] = {"main": {"train": rows, "test": rows}, "socratic": {}}
    return types.SimpleNamespace(asked=asked, data_sets=data_sets)


def test_rows_from_the_hub(hub):
    found = list(Gsm8k(validation_rows=0).rows())
    natalia = Row(NATALIA["question"], ("<<48/2=24>>", "<<48+24=72>>"), "72")
    assert found == [
        ("train", natalia),
        ("train", BadRow("openai/gsm8k, split train", 2, "empty question")),
        ("test", natalia),
        ("test", BadRow("openai/gsm8k, split test", 2, "empty question")),
    ]
    assert hub.asked == [("openai/gsm8k", "main")]
    assert Gsm8k().files() == {}


def test_a_copy_on_the_hub_with_a_config_and_a_validation_split_of_its_own(hub):
    rows = [{"question": f"{name}?", "steps": ["<<6*7=42>>"], "answer": "42"} for name in "abcd"]
    copy = {"train": rows[:2], "validation": rows[2:3], "test": rows[3:]}
    hub.data_sets["some/copy"] = {"default": copy}
    found = [(split, row.question) for split, row in Gsm8k(hub_name="some/copy").rows()]
    assert found == [("train", "a?"), ("train", "b?"), ("valid", "c?"), ("test", "d?")]
    assert hub.asked == [("some/copy", "main"), ("some/copy", None)]
    hub.data_sets["some/copy"] = {"a": {}, "b": copy}
    assert len(list(Gsm8k(hub_name="some/copy", hub_subset="b").rows())) == 4
    with pytest.raises(
        CopraError, match=r"hub_name: 'some/copy' could not be loaded .*not found.*hub_subset"
    ):
        list(Gsm8k(hub_name="some/copy").rows())


def test_the_form_of_gsm8k_aug_on_the_hub_is_read_by_the_real_library(tmp_path, monkeypatch):
    """From a folder laid out as whynlp/gsm8k-aug is, without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    steps = ["<<600*30/100=180>>", "<<180*2=360>>"]
    rows = {"train": [("a?", steps, "360"), ("b?", [], "-7"), ("c?", steps, "3:30 pm")]}
    rows |= {"validation": [("v?", steps, "360")], "test": [("t?", steps, "360")]}
    folder = tmp_path / "gsm8k-aug"
    (folder / "data").mkdir(parents=True)
    for split, found in rows.items():
        frame = pandas.DataFrame(found, columns=["question", "steps", "answer"])
        frame.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    assert list(Gsm8k(hub_name=str(folder)).rows()) == [
        ("train", Row("a?", tuple(steps), "360")),
        ("train", Row("b?", (), "-7")),
        ("train", BadRow(f"{folder}, split train", 3, "the answer '3:30 pm' is not a number")),
        ("valid", Row("v?", tuple(steps), "360")),
        ("test", Row("t?", tuple(steps), "360")),
    ]


def test_a_file_comes_before_the_validation_split_of_the_hub(hub, task_of, tmp_path):
    task_of(valid=row("of the file?"))
    rows = [{"question": "of the Hub?", "cot": "<<6*7=42>>", "answer": "42"}]
    hub.data_sets["some/copy"] = {"default": dict.fromkeys(("train", "validation", "test"), rows)}
    task = Gsm8k(hub_name="some/copy", valid=str(tmp_path / "valid.jsonl"))
    assert [found.question for found in rows_of(task, "valid")] == ["of the file?"]


def test_a_data_set_without_a_test_split_is_refused(hub):
    hub.data_sets["some/copy"] = {"main": {"train": [NATALIA], "valid": [NATALIA]}}
    with pytest.raises(CopraError, match=r"^hub_name: 'some/copy' has no split test, only train, valid"):
        list(Gsm8k(hub_name="some/copy").rows())


def test_a_hub_that_does_not_answer(hub):
    with pytest.raises(
        CopraError, match=r"hub_name: .*'some/where' could not be loaded .*no route.*source: files"
    ):
        list(Gsm8k(hub_name="some/where").rows())


DATA = os.environ.get("COPRA_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="COPRA_DATA does not name the folder of published files")
PUBLISHED = {
    "source": "files",
    "train": "${COPRA_DATA}/gsm8k/train.jsonl",
    "test": "${COPRA_DATA}/gsm8k/test.jsonl",
}


@pytest.mark.slow
@needs_data
def test_the_published_files_as_counted_by_others():
    rows = {"train": [], "valid": [], "test": []}
    for split, found in Gsm8k(**PUBLISHED).rows():
        assert isinstance(found, Row), found
        rows[split].append(found)
    assert {split: len(found) for split, found in rows.items()} == {"train": 6973, "valid": 500, "test": 1319}
    train = rows["train"] + rows["valid"]
    assert sum(not found.steps for found in train) == 95
    raw = (Path(DATA) / "gsm8k/train.jsonl").read_text().splitlines()
    commas = [json.loads(line)["answer"].split("#### ")[1] for line in raw]
    assert sum("," in answer for answer in commas) == 79
    assert not any("," in found.answer for found in train)
    assert sum(found.answer.startswith("-") for found in train) == 3


@pytest.mark.slow
@needs_data
def test_both_published_forms_of_the_test_rows_agree():
    openai = {found.id: found for found in rows_of(Gsm8k(**PUBLISHED), "test")}
    icot = rows_of(Gsm8k(**{**PUBLISHED, "test": "${COPRA_DATA}/icot/gsm8k_test.txt"}), "test")
    assert len(icot) == len(openai) == 1319
    assert sum(not found.steps for found in icot) == 18
    assert all(found.steps == openai[found.id].steps for found in icot)
    assert all(found.answer == openai[found.id].answer for found in icot)


@needs_data
def test_sentences_of_the_published_rows_hold_no_annotation():
    for _, found in Gsm8k(**PUBLISHED, steps="sentences").rows():
        assert found.steps
        assert not any("<<" in step or ">>" in step or "\n" in step for step in found.steps)
