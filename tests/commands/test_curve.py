"""copra curve on an untrained checkpoint: every point against the same units really removed."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pandas
import pytest
import torch

from copra.commands import curve
from copra.cost.flops import FlopCounter
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of, tokenize
from copra.evaluation.accuracy import predictions
from copra.evaluation.statistics import wilson_interval
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.scores import score_row, score_table
from copra.pruning.surgery import cut_model
from copra.utils.errors import CopraError
from copra.utils.files import write_sealed_parquet
from helpers.manifests import manifest, provenance

pytestmark = pytest.mark.slow

# Layers go in the order 2, 0, 1 by cosine, as one block of 0 and 1 by angular distance where two go.
COSINE = (0.2, 0.3, 0.1)
ANGULAR = {(0, 1): 0.9, (1, 1): 0.8, (2, 1): 0.3, (0, 2): 0.4, (1, 2): 0.7, (0, 3): 1.0}
TYPICAL = {"prompt": 8, "generated": 10}


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data, scores, and checkpoints that write steps, think in two latents, or do neither."""
    made = word_base(layers=3, initializer_range=0.3)
    markers = markers_of(made.tokenizer)
    thinking = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,))
    plain = GenerationSpec((), 0, "hidden", markers.latent, ())
    for name, method, decoding in (
        ("cot", "cot", plain),
        ("coconut", "coconut", thinking),
        ("base", None, None),
    ):
        known = provenance(name, seed=7, method=method, decoding=decoding, typical_answer=TYPICAL)
        save_checkpoint(tmp_path / name, made.model, made.tokenizer, known)
    rows = [score_row("cosine", score, "layer", layer) for layer, score in enumerate(COSINE)]
    rows += [score_row("angular", score, "block", first, length=n) for (first, n), score in ANGULAR.items()]
    rows += [
        score_row("taylor", 10 * layer + group, "kv_group", layer, group)
        for layer in range(3)
        for group in (0, 1)
    ]
    (tmp_path / "scores" / "cot").mkdir(parents=True)
    write_sealed_parquet(tmp_path / "scores" / "cot" / "passes.parquet", score_table(rows), {})
    greedy = [score_row("greedy_loss", 0, "layer", 1)]
    write_sealed_parquet(tmp_path / "scores" / "cot" / "layers.greedy_loss.parquet", score_table(greedy), {})
    return tmp_path


def run(place, model="cot", limit=6, **settings) -> pandas.DataFrame:
    parser = ArgumentParser()
    curve.arguments(parser)
    asked = {"model": f"llama+{model}", "unit": "layers", "metrics": ["cosine"], "remove": [2, 1]}
    asked |= {"objectives": ["cot"], **settings}
    value = {"node": model, "name": "mine", "curve": asked, "max_new_tokens": 6, "limit": limit}
    words = ["--settings", json.dumps(value), "--model", str(place / model), "--data", str(place / "data")]
    words += ["--scores", str(place / "scores"), "--state", str(place / "state")]
    output = place / "curve.parquet"
    curve.run(parser.parse_args([*words, "--output", str(output)]))
    return pandas.read_parquet(output)


def cut(place, model, units):
    """A checkpoint with units really removed."""
    checkpoint = load_checkpoint(place / model)
    whole = checkpoint.shape
    checkpoint.model = cut_model(checkpoint.model, KeptUnits.whole(whole).without(whole, units))
    return checkpoint


def layers(*numbers):
    return [("layers", layer, layer) for layer in numbers]


def test_layers_go_in_the_order_of_each_metric(place):
    table = run(place, metrics=["cosine", "angular", "deepest"])
    assert list(table["metric"]) == ["cosine"] * 3 + ["angular"] * 3 + ["deepest"] * 3
    assert list(table["removed"]) == [0, 1, 2] * 3
    assert list(table["left"]) == [3, 2, 1] * 3
    assert list(table["cut"]) == ["nothing", "2", "0, 2", "nothing", "2", "0, 1", "nothing", "1", "0, 1"]
    assert list(table["objective"].fillna("-"))[::3] == ["cot", "cot", "-"]
    first = table.iloc[0]
    assert (first["curve"], first["recipe"], first["node"]) == ("mine", "llama+cot", "cot")
    assert (first["seed"], first["unit"], first["n"]) == ("7", "layers", 6)
    assert table["random_seed"].isna().all()


@pytest.mark.parametrize("model", ["cot", "coconut"])
def test_accuracy_is_that_of_the_model_really_cut(place, rows, model, monkeypatch):
    """An untrained model is never right, so what counts as right is a matter of what it writes."""
    monkeypatch.setattr("copra.evaluation.accuracy.extract_answer", lambda text: text)
    monkeypatch.setattr("copra.evaluation.accuracy.same_answer", lambda text, *_: len(text) % 3 == 0)
    expected = []
    for units in ([], layers(2), layers(0, 2)):
        left = cut(place, model, units)
        decoding = left.decoding
        expected.append(predictions(left, decoding, rows[2::3], 6, "number")["correct"].sum())
    assert len(set(expected)) > 1
    table = run(place, model, limit=None)
    assert list(table["correct"]) == expected
    for row in table.itertuples():
        assert (row.n, row.accuracy) == (8, row.correct / 8)
        assert (row.low, row.high) == wilson_interval(row.correct, 8)


def loss_by_hand(checkpoint, row, kept):
    """Mean cross-entropy of steps and answer, or of the answer right after the question."""
    (tokens,) = tokenize(checkpoint.tokenizer, [row])
    supervised = [token for step in tokens.steps for token in step] if kept else []
    supervised = supervised + tokens.answer
    sequence = torch.tensor([tokens.question + supervised], device=checkpoint.model.device)
    with torch.no_grad():
        predicted = checkpoint.model(input_ids=sequence).logits[0].log_softmax(-1)
    places = range(len(tokens.question), sequence.shape[1])
    return -sum(float(predicted[place - 1, sequence[0, place]]) for place in places) / len(supervised)


def test_the_loss_is_that_of_the_text_that_the_model_writes(place, rows):
    table = run(place, remove=[2])
    assert set(table["loss_on"]) == {"cot"}
    for value, units in zip(table["loss"], ([], layers(0, 2)), strict=True):
        checkpoint = cut(place, "cot", units)
        losses = [loss_by_hand(checkpoint, row, kept=True) for row in rows[2::3][:6]]
        assert value == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_a_model_without_steps_and_latents_is_read_as_question_and_answer(place, rows):
    checkpoint = load_checkpoint(place / "cot")
    known = checkpoint.manifest.model_copy(update={"method": "no_cot"})
    save_checkpoint(place / "no_cot", checkpoint.model, checkpoint.tokenizer, known)
    table = run(place, "no_cot", remove=[1])
    assert set(table["loss_on"]) == {"latent"}
    losses = [loss_by_hand(checkpoint, row, kept=False) for row in rows[2::3][:6]]
    assert table["loss"][0] == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_a_model_that_cannot_answer_has_a_loss_alone(place):
    table = run(place, "base", remove=[1])
    assert table[["correct", "accuracy", "low", "high"]].isna().all(axis=None)
    assert table["loss"].gt(0).all()
    assert set(table["loss_on"]) == {"cot"}


def test_a_point_costs_its_part_of_the_whole(place):
    point = run(place, unit="kv_groups", metrics=["taylor"], remove=[2]).iloc[1]
    assert point["cut"] == "0:0, 1:0"
    assert (point["removed"], point["left"]) == (2, 4)
    whole, less = (cut(place, "cot", units) for units in ([], [("kv_groups", 0, 0), ("kv_groups", 1, 0)]))
    parameters = [sum(each.numel() for each in one.model.parameters()) for one in (whole, less)]
    assert point["parameters_ratio"] == parameters[1] / parameters[0]
    flops = [FlopCounter(one.shape).of_answer(None, 8, 10) for one in (whole, less)]
    assert point["flops_ratio"] == flops[1].total / flops[0].total
    assert point["attention_flops_ratio"] == pytest.approx(4 / 6)
    assert point["kv_cache_ratio"] == pytest.approx(4 / 6)


def test_random_orders_are_one_line_each(place):
    table = run(place, metrics=["random"], remove=[1], random_seeds=[3, 1])
    assert list(table["random_seed"]) == [3, 3, 1, 1]
    assert run(place, metrics=["random"], remove=[1], random_seeds=[3, 1]).equals(table)


def test_what_is_measured_is_measured_once(place, monkeypatch):
    """Equal cuts of several metrics, and all of it in a second run, as after a kill."""
    calls = []
    original = predictions

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr("copra.pruning.scoring.ablation.predictions", counted)
    first = run(place, metrics=["cosine", "angular"])
    assert len(calls) == len({"nothing", "2", "0, 2", "0, 1"})
    assert run(place, metrics=["cosine", "angular"]).equals(first)
    assert len(calls) == 4


def test_numbers_that_cannot_be_removed_are_told_before_anything_is_measured(place):
    with pytest.raises(CopraError) as caught:
        run(place, metrics=["cosine", "greedy_loss"], remove=[1, 2, 3])
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[0] for line in lines[:3]] == [
        "curves.mine, 3 removed by cosine",
        "curves.mine, 2 removed by greedy_loss",
        "curves.mine, 3 removed by greedy_loss",
    ]
    assert "3 of the 3 layers cannot be removed; the nearest legal counts are 2" in lines[0]
    assert "Change remove or metrics" in lines[3]
    assert not (place / "state").exists()
    assert not (place / "curve.parquet").exists()


@pytest.mark.parametrize(
    ("removed", "text"),
    [
        ([], "nothing"),
        (
            [{"unit": "layers", "layer": 3, "indices": [3]}, {"unit": "layers", "layer": 5, "indices": [5]}],
            "3, 5",
        ),
        (
            [{"unit": "heads", "layer": 0, "indices": [1, 4]}, {"unit": "heads", "layer": 2, "indices": [0]}],
            "0:1, 0:4, 2:0",
        ),
        ([{"unit": "neurons", "layer": 1, "count": 128}], "128 of layer 1"),
    ],
)
def test_a_removal_in_words(removed, text):
    assert curve.in_words(removed) == text


@pytest.mark.parametrize(
    ("method", "decoding", "objective"),
    [
        (None, None, "cot"),
        ("scratchpad", {}, "cot"),
        ("few_shot", {}, "cot"),
        ("pause", {"latents": 4, "thought": "embedding"}, "latent"),
        ("codi", {"latents": 4}, "latent"),
        ("codi", {"latents": 4, "iterations": 2}, "answer"),
        ("icot_kd", {"emulated": True}, "answer"),
    ],
)
def test_the_loss_is_taken_on_what_the_model_reads(method, decoding, objective):
    spec = None if decoding is None else replace(GenerationSpec((), 0, "hidden", 4, ()), **decoding)
    assert curve.answering_objective(manifest(method=method, decoding=spec)) == objective
