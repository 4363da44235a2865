"""What latency is measured of; how long it takes is nobody's to say here."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import markers_of
from copra.evaluation import latency
from copra.generation import answering, compiled
from copra.models.checkpoint import Checkpoint
from helpers.manifests import manifest

SIZES = {"max_new_tokens": 4, "forced_tokens": 3, "batch_size": 5, "questions": 2, "repetitions": 2}


@pytest.fixture
def checkpoint(word_base):
    made = word_base()
    markers = markers_of(made.tokenizer)
    decoding = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,))
    return Checkpoint(made.model, made.tokenizer, manifest("tiny", decoding=decoding))


@pytest.fixture
def asked(monkeypatch):
    """What each call of `decode` is given."""
    calls, decode = [], answering.decode

    def listening(model, prompts, decoding, **options):
        calls.append((len(prompts), options))
        return decode(model, prompts, decoding, **options)

    monkeypatch.setattr(answering, "decode", listening)
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


def test_worked_examples_are_measured_with_each_question_and_before_them(word_base, rows, asked):
    """Once the examples are read anew each time, once they are in the cache already."""
    made = word_base()
    prompting = Prompting(" and ".join("123451234512345") + " ? ", "{question}", ("?",), "strict")
    decoding = GenerationSpec((), 0, "hidden", markers_of(made.tokenizer).latent, (), prompting=prompting)
    shown = Checkpoint(made.model, made.tokenizer, manifest("shown", decoding=decoding))
    read = []
    made.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(
            kwargs["input_ids" if "input_ids" in kwargs else "inputs_embeds"].shape[1]
        ),
        with_kwargs=True,
    )
    table = latency.measure(shown, rows, **{**SIZES, "repetitions": 1})
    kinds = [(row["batch"], row["prompt"], row["length"]) for row in table]
    assert kinds == [(b, p, n) for b in (1, 5) for p in ("whole", "cached") for n in ("natural", "forced")]
    prefix = len(next(options["prefix"] for _, options in asked if options["prefix"]))
    assert prefix > 20
    # The examples alone are read once, before all that is measured.
    assert read[0] == prefix
    assert prefix not in read[1:]
    whole, cached = asked[0], asked[4]
    assert (whole[1]["prefix"], whole[1]["prefix_cache"]) == ((), None)
    assert cached[1]["prefix_cache"].get_seq_length() == prefix


@pytest.mark.slow
def test_compiled_code_is_compiled_once_for_each_size_of_a_batch(checkpoint, rows, asked, monkeypatch):
    counter, made = CompileCounter(), compiled.Compiled.__init__
    monkeypatch.setattr(compiled.Compiled, "__init__", lambda *given: made(*given, backend=counter))
    table = latency.measure(checkpoint, rows, **SIZES, compile=True)
    assert {row["compiled"] for row in table} == {True}
    assert [options["compiled"].batch_size for _, options in asked] == [1] * 6 + [5] * 6
    assert counter.frame_count == 2
    torch.compiler.reset()
