"""What latency is measured of; how long it takes is nobody's to say here."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from copra.cost import latency
from copra.inference import compiled
from copra.models.checkpoint import Checkpoint
from copra.models.tokens import markers_of
from copra.reasoning.layout import Decoding

SIZES = {"max_new_tokens": 4, "forced_tokens": 3, "batch_size": 5, "questions": 2, "repetitions": 2}


@pytest.fixture
def checkpoint(word_base):
    made = word_base()
    markers = markers_of(made.tokenizer)
    decoding = Decoding((markers.start,), 2, "hidden", markers.latent, (markers.end,))
    return Checkpoint(made.model, made.tokenizer, {"node": "tiny", "decoding": decoding.to_json()})


@pytest.fixture
def asked(monkeypatch):
    """What each call of `decode` is given."""
    calls, decode = [], latency.decode

    def listening(model, prompts, decoding, **options):
        calls.append((len(prompts), options))
        return decode(model, prompts, decoding, **options)

    monkeypatch.setattr(latency, "decode", listening)
    return calls


def test_a_row_for_each_batch_and_length(checkpoint, rows, asked):
    table = latency.measure(checkpoint, rows, **SIZES)
    kinds = [(row["batch"], row["length"], row["answers"]) for row in table]
    assert kinds == [(1, "natural", 2), (1, "forced", 2), (5, "natural", 5), (5, "forced", 5)]
    assert all(row["seconds_per_answer"] > 0 and row["repetitions"] == 2 for row in table)
    assert {(row["node"], row["dtype"], row["compiled"]) for row in table} == {("tiny", "float32", False)}
    # One run to warm up and two that are measured, of each kind.
    assert [count for count, _ in asked] == [2] * 6 + [5] * 6
    assert [options["force_length"] for _, options in asked] == ([False] * 3 + [True] * 3) * 2
    assert [options["max_new_tokens"] for _, options in asked] == ([4] * 3 + [3] * 3) * 2
    assert {options["compiled"] for _, options in asked} == {None}


def test_compiled_code_is_compiled_once_for_each_size_of_a_batch(checkpoint, rows, asked, monkeypatch):
    counter, made = CompileCounter(), compiled.Compiled.__init__
    monkeypatch.setattr(compiled.Compiled, "__init__", lambda *given: made(*given, backend=counter))
    table = latency.measure(checkpoint, rows, **SIZES, compile=True)
    assert {row["compiled"] for row in table} == {True}
    assert [options["compiled"].batch_size for _, options in asked] == [1] * 6 + [5] * 6
    assert counter.frame_count == 2
    torch.compiler.reset()
