"""copra sweep-latents, swap-latents and logit-lens of an untrained checkpoint, against single evaluations."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pandas
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from copra.commands import logit_lens, swap_latents, sweep_latents
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.evaluation.accuracy import predictions
from copra.generation import compiled
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.utils.errors import CopraError
from helpers.manifests import provenance


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data, and checkpoints that think in two latents, in two pause tokens, and not at all."""
    made = word_base(initializer_range=0.3)
    markers = markers_of(made.tokenizer)
    thinking = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,))
    pausing, plain = replace(thinking, thought="embedding"), replace(thinking, latents=0)
    for name, decoding in (("thinking", thinking), ("pausing", pausing), ("plain", plain)):
        save_checkpoint(tmp_path / name, made.model, made.tokenizer, provenance(name, decoding=decoding))
    return tmp_path


def run(verb, place, model: str, **settings):
    parser = ArgumentParser()
    verb.arguments(parser)
    output = place / "output.parquet"
    value = {"node": model, "max_new_tokens": 6, **settings}
    words = ["--settings", json.dumps(value), "--model", str(place / model)]
    words += ["--data", str(place / "data"), "--output", str(output)]
    if verb is not logit_lens:
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


SOURCES = ["own", "other", "mean", "zeros", "drop_last"]


def test_own_latents_are_an_evaluation_and_one_fewer_is_a_sweep(place, rows):
    table = run(swap_latents, place, "thinking", latents_from=["drop_last", "zeros", "mean", "other"])
    assert list(table["source"]) == SOURCES
    assert set(table["node"]) == {"thinking"}
    found = table.set_index("source")
    for source, latents in (("own", 2), ("drop_last", 1)):
        checkpoint = load_checkpoint(place / "thinking")
        decoding = replace(checkpoint.decoding, latents=latents)
        single = predictions(checkpoint, decoding, rows[2::3], 6, "number")
        assert list(found["is_correct"][source]) == single["correct"].tolist()
    swept = run(sweep_latents, place, "thinking", latents=[1]).set_index("latents")
    columns = ["n", "correct", "accuracy", "low", "high"]
    assert list(found[columns].loc["drop_last"]) == list(swept[columns].loc[1])
    assert found["changed"]["own"] == 0
    assert found["n_other"].notna().tolist() == [source == "other" for source in SOURCES]
    assert (found["n"] == 8).all()


def test_each_source_gives_other_texts(place, monkeypatch):
    """Otherwise latents that are not replaced would pass."""
    texts, answers = {}, swap_latents.answers_by_source

    def watched(*arguments, **options):
        found = answers(*arguments, **options)
        texts.update({source: tuple(table["generated"]) for source, table in found.items()})
        return found

    monkeypatch.setattr(swap_latents, "answers_by_source", watched)
    run(swap_latents, place, "thinking", latents_from=SOURCES)
    assert list(texts) == SOURCES
    assert len(set(texts.values())) == 5


def test_a_single_question_is_refused_for_others(place):
    with pytest.raises(CopraError, match="only 1 is evaluated"):
        run(swap_latents, place, "thinking", latents_from=["other"], limit=1)
    table = run(swap_latents, place, "thinking", latents_from=["mean"], limit=1)
    assert list(table["source"]) == ["own", "mean"]
    assert list(table["changed"]) == [0, 0]


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
    for name in ("plain", "pausing"):
        with pytest.raises(CopraError, match=rf"{name}: this model has no latents .* none to replace"):
            run(swap_latents, place, name, latents_from=["other"])


def test_a_lens_in_bfloat16_reads_probabilities_in_float32(place, monkeypatch):
    monkeypatch.setattr("copra.models.checkpoint.has_bfloat16", lambda: True)
    table = run(logit_lens, place, "thinking", questions=3, precision="bfloat16")
    assert set(table["precision"]) == {"bfloat16"}
    shares = torch.tensor(table["probability"].to_numpy())
    assert not torch.equal(shares.bfloat16().double(), shares)
