"""Checkpoints in the formats of other programs, and what these answer beside copra."""

import pytest

from copra.data.tokenization import ANSWER
from copra.evaluation import conversions
from copra.evaluation.conversions import measure_conversions
from copra.schema.conversion import missing_packages, program_and_type
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from helpers.exported import latents, make_checkpoint

SETTINGS = {"max_new_tokens": 6, "answers": "text", "threads": 1}
QUESTIONS = ("2 and 3 ?", "5 and 1 and 4 and 2 ?", "1 and 1 ?", "7 and 2 ?")


@pytest.fixture
def converted(monkeypatch):
    """Files of zeros whose models answer "one" to all questions but the first; what was asked of them."""
    asked = []

    def write(checkpoint, path, kind, *positions):
        file = path
        if positions:
            path.mkdir()
            file = path / conversions.PROGRAM
        file.write_bytes(bytes(100 if kind == "f32" else 30))
        asked.append((kind, *positions))

    class Model:
        def __init__(self, path, *sizes):
            assert path.exists()
            asked.append(sizes)

        def answer(self, question, limit):
            asked.append((question, limit))
            return f"so{ANSWER}{'other' if question == QUESTIONS[0] else 'one'}"

    for name in ("write_gguf", "write_executorch"):
        monkeypatch.setattr(conversions, name, write)
    for name in ("GgufModel", "ExecutorchModel"):
        monkeypatch.setattr(conversions, name, Model)
    monkeypatch.setattr(conversions, "missing_packages", lambda formats: [])
    return asked


@pytest.fixture
def measure(rows, tmp_path, monkeypatch):
    """Measures a checkpoint with two latents in some formats; in copra it always writes `own`."""

    def measure(formats, gold="one", own=f"so{ANSWER}one", folder="files", **sizes):
        checkpoint = make_checkpoint(tmp_path / "model", rows, latents(2), layers=1, **sizes)
        monkeypatch.setattr(conversions, "_ask_checkpoint", lambda *_: lambda _: own)
        questions = [Row(question, (), gold) for question in QUESTIONS]
        return measure_conversions(
            checkpoint, tmp_path / "model", questions, formats, tmp_path / folder, **SETTINGS
        )

    return measure


def test_each_format_has_a_row_after_copra_s(converted, measure, tmp_path):
    table = measure(["gguf-f32", "executorch-int8"])
    assert list(table["format"]) == ["copra", "gguf-f32", "executorch-int8"]
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert list(table["bytes"]) == [weights, 100, 30]
    assert list(table["n"]) == [4] * 3
    assert list(table["accuracy"]) == [1, 0.75, 0.75]
    assert list(table["same_answers"]) == [1, 0.75, 0.75]
    assert ((table["low"] < table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert (table["seconds_per_answer"] > 0).all()
    # The first question is asked once more, before time is taken.
    asked = [(question, 6) for question in (QUESTIONS[0], *QUESTIONS)]
    assert converted == [("f32",), ("int8", 512), (512, 1), *asked, (1,), *asked]


def test_equal_answers_may_be_written_in_different_ways_and_none_is_equal_to_none(converted, measure):
    table = measure(["gguf-f32"], gold="ONE.", own=f"x{ANSWER}One ")
    assert list(table["same_answers"]) == [1, 0.75]
    assert list(table["accuracy"]) == [1, 0.75]
    table = measure(["gguf-f32"], own="no mark", folder="other")
    assert list(table["same_answers"]) == [1, 0]
    assert list(table["accuracy"]) == [0, 0.75]


def test_right_answers_count_and_not_those_of_copra(converted, measure):
    table = measure(["gguf-q4_0"], gold="other")
    assert list(table["accuracy"]) == [0, 0.25]
    assert list(table["same_answers"]) == [1, 0.75]


def test_there_is_room_for_all_answers_or_as_much_as_the_model_has(converted, measure):
    measure(["executorch-f32"], max_position_embeddings=48)
    assert converted[:2] == [("f32", 48), (1,)]
    with pytest.raises(CopraError, match="its question has"):
        measure(["executorch-f32"], max_position_embeddings=16)


def test_the_checkpoint_answers_as_copra_does(rows, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", rows, latents(2), layers=1)
    ask = conversions._ask_checkpoint(checkpoint, checkpoint.decoding, 6)
    import copra

    model = copra.load(tmp_path / "model")
    assert [ask(question) for question in QUESTIONS] == [
        model.answer(question, 6).text for question in QUESTIONS
    ]


def test_a_package_that_is_missing_is_told_before_anything_is_written(measure, monkeypatch, tmp_path):
    monkeypatch.setattr("copra.schema.conversion.find_spec", lambda module: None)
    with pytest.raises(CopraError, match="pip install gguf llama-cpp-python 'executorch"):
        measure(["gguf-f16", "executorch-f32"])
    assert not (tmp_path / "files").exists()
    assert missing_packages(["executorch-int8"]) == ["'executorch>=1.5.1,<1.6'"]
    assert program_and_type("gguf-q8_0") == ("gguf", "q8_0")
