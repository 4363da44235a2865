"""copra sweep-latents and copra logit-lens of an untrained checkpoint, against single evaluations."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pandas
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from copra.commands import logit_lens, sweep_latents
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.evaluation.accuracy import predictions
from copra.generation import compiled
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.utils.errors import CopraError
from helpers.manifests import provenance


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data, a checkpoint that thinks in two latents, and one that does not think."""
    made = word_base(initializer_range=0.3)
    markers = markers_of(made.tokenizer)
    thinking = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,))
    for name, decoding in (("thinking", thinking), ("plain", replace(thinking, latents=0))):
        save_checkpoint(tmp_path / name, made.model, made.tokenizer, provenance(name, decoding=decoding))
    return tmp_path


def run(verb, place, model: str, **settings):
    parser = ArgumentParser()
    verb.arguments(parser)
    output = place / "output.parquet"
    value = {"node": model, "max_new_tokens": 6, **settings}
    words = ["--settings", json.dumps(value), "--model", str(place / model)]
    words += ["--data", str(place / "data"), "--output", str(output)]
    if verb is sweep_latents:
        words += ["--state", str(place / "state")]
    verb.run(parser.parse_args(words))
    return pandas.read_parquet(output)


def test_a_sweep_equals_single_evaluations(place, rows):
    table = run(sweep_latents, place, "thinking", latents=[3, 0])
    assert table["latents"].tolist() == [0, 2, 3]
    assert table["trained"].tolist() == [False, True, False]
    checkpoint = load_checkpoint(place / "thinking")
    decoding = checkpoint.decoding
    for row in table.itertuples():
        single = predictions(checkpoint, replace(decoding, latents=row.latents), rows[2::3], 6, "number")
        assert (row.n, row.correct) == (8, single["correct"].sum())
        assert (row.flops, row.depth) == (single["flops"].mean(), single["depth"].mean())
        assert row.low <= row.accuracy <= row.high
    # Without a latent the markers stay: question, start and end in one pass.
    assert table["flops"].is_monotonic_increasing


@pytest.mark.slow
def test_a_compiled_sweep_compiles_once_and_equals_a_plain_one(place, monkeypatch):
    counter, made = CompileCounter(), compiled.Compiled.__init__
    monkeypatch.setattr(compiled.Compiled, "__init__", lambda *given: made(*given, backend=counter))
    plain = run(sweep_latents, place, "thinking", latents=[3, 0])
    pandas.testing.assert_frame_equal(
        run(sweep_latents, place, "thinking", latents=[3, 0], compile=True), plain
    )
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_a_lens_has_a_row_for_each_token(place, rows):
    table = run(logit_lens, place, "thinking", questions=3, split="valid")
    assert len(table) == 3 * 2 * 5
    assert table["question"].unique().tolist() == [row.question for row in rows[1::3][:3]]
    assert [list(steps) for steps in table["steps"][::10]] == [list(row.steps) for row in rows[1::3][:3]]
    for _, said in table.groupby(["id", "latent"]):
        assert said["rank"].tolist() == [0, 1, 2, 3, 4]
        assert said["probability"].is_monotonic_decreasing
        assert 0 < said["probability"].sum() <= 1 + 1e-6


def test_answers_longer_than_the_model_are_refused(place, rows):
    """64 positions, less the longest question with its line break and 4 for the thought; the last token
    needs none."""
    room = 64 - (max(len(row.question.split()) for row in rows[2::3]) + 1) - 4 + 1
    assert len(run(logit_lens, place, "thinking", questions=8, max_new_tokens=room)) == 8 * 2 * 5
    with pytest.raises(CopraError, match=rf"its latents and markers are 4, .* leaves {room} for the answer"):
        run(logit_lens, place, "thinking", questions=8, max_new_tokens=room + 1)
    with pytest.raises(CopraError, match=r"its latents and markers are 102, .* leaves 0 for the answer"):
        run(sweep_latents, place, "thinking", latents=[100])


def test_a_model_without_latents_is_refused(place):
    with pytest.raises(CopraError, match=r"plain: this model answers without latents"):
        run(sweep_latents, place, "plain", latents=[1])
    with pytest.raises(CopraError, match=r"plain: this model has no latents"):
        run(logit_lens, place, "plain", questions=1)


def test_a_lens_in_bfloat16_reads_probabilities_in_float32(place, monkeypatch):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: True)
    table = run(logit_lens, place, "thinking", questions=3, precision="bfloat16")
    assert set(table["precision"]) == {"bfloat16"}
    shares = torch.tensor(table["probability"].to_numpy())
    assert not torch.equal(shares.bfloat16().double(), shares)
