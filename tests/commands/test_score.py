"""copra score from the command line's settings to the table."""

import contextlib
import hashlib
import json
from argparse import ArgumentParser

import pandas
import pytest
import torch

from copra.commands import score
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.evaluation.accuracy import predictions
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.ablation import Ablation
from copra.pruning.scoring.calibration import calibration_batches, calibration_name
from copra.pruning.scoring.objective import example_losses
from copra.pruning.scoring.scores import COLUMNS
from copra.pruning.scoring.text import read_text, text_batches, text_name
from copra.pruning.surgery import cut_model
from copra.schema.metrics import BACKWARD_METRICS, OF_BLOCKS, SCORED_AS, SCORINGS
from copra.schema.scoring import Text
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, read_sealed_json
from helpers.manifests import provenance

NUMBERS = {"layers": 3, "kv_groups": 6, "heads": 12, "neurons": 144}


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data, a text, and checkpoints that write their steps, think in two projected latents, or
    were never trained to answer."""
    made = word_base(layers=3, initializer_range=0.3)
    markers = markers_of(made.tokenizer)
    torch.manual_seed(1)
    parts = make_extra_modules(made.model, {"projection": {}})
    plain = GenerationSpec((), 0, "hidden", markers.latent, ())
    thinking = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,), "projected")
    for name, decoding in (("plain", plain), ("thinking", thinking), ("base", None)):
        known = provenance(name, decoding=decoding)
        own = parts if name == "thinking" else None
        save_checkpoint(tmp_path / name, made.model, made.tokenizer, known, extra_modules=own)
    (tmp_path / "text.txt").write_text("1 and 2 ?\n\n3 + 4 = 7 and 5\n2\n")
    return tmp_path


def run(place, scoring, model="plain", objective="cot", importance=(), **settings):
    parser = ArgumentParser()
    score.arguments(parser)
    small = {"rows": 6, "batch_size": 4, "validation_rows": 5, "greedy_removals": 2}
    small |= {"gates": {"steps": 3, "warmup_steps": 1, "batch_size": 4}}
    value = {"scoring": scoring, "objective": objective, "importance": {**small, **dict(importance)}}
    words = ["--settings", json.dumps({**value, "max_new_tokens": 6, **settings})]
    words += ["--model", str(place / model / MANIFEST), "--data", str(place / "data" / "valid.parquet")]
    words += ["--state", str(place / "state"), "--output", str(place / "scores.parquet")]
    score.run(parser.parse_args(words))
    return pandas.read_parquet(place / "scores.parquet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scoring", "model", "objective"),
    [
        *((scoring, "thinking", "latent") for scoring in SCORINGS),
        ("passes", "plain", "cot"),
        ("layers.loss", "thinking", "answer"),
    ],
)
def test_every_scoring_scores_its_units(place, rows, scoring, model, objective):
    table = run(place, scoring, model, objective)
    assert tuple(table.columns) == COLUMNS
    assert table["score"].map(pandas.notna).all()
    if scoring == "passes":
        for kind, metrics in BACKWARD_METRICS.items():
            for metric in set(metrics) - set(OF_BLOCKS):
                chosen = table[(table["unit"] == SCORED_AS[kind]) & (table["metric"] == metric)]
                assert len(chosen) == NUMBERS[kind]
    else:
        kind, metric = scoring.split(".")
        assert set(table["metric"]) == {metric}
        assert set(table["unit"]) == {SCORED_AS[kind]}
        assert len(table) == (2 if "greedy" in metric else NUMBERS[kind])
        assert len(table[["layer", "index"]].drop_duplicates()) == len(table)
    decoding = load_checkpoint(place / model).decoding
    read = rows[0::3][:6] if scoring == "passes" or scoring.endswith("gates") else rows[1::3][:5]
    assert set(table["calibration"]) == {calibration_name(read, objective, decoding)}
    assert set(table["examples"]) == {len(read)}


@pytest.mark.parametrize(("scoring", "split"), [("passes", "train"), ("layers.loss", "valid")])
def test_the_small_file_beside_a_table_stands_for_it(place, scoring, split):
    """With the table's checksum, and those of the model and the rows that it was made of."""
    run(place, scoring)
    summary = read_sealed_json(place / "scores.json")
    assert summary["sha256"] == hashlib.sha256((place / "scores.parquet").read_bytes()).hexdigest()
    made_of = (place / "plain" / MANIFEST, place / "data" / f"{split}.json")
    assert set(summary["made_by"]["files"]) == {
        hashlib.sha256(file.read_bytes()).hexdigest() for file in made_of
    }
    assert summary["made_by"]["settings"]["scoring"] == scoring


def test_a_job_that_was_killed_before_the_small_file_has_not_made_the_scores(place, monkeypatch):
    """So the one that waited for it makes both files."""

    @contextlib.contextmanager
    def waited(state, node, output):
        yield output.is_file()

    run(place, "layers.loss")
    files = [place / "scores.json", place / "scores.parquet"]
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    monkeypatch.setattr(score, "hold", waited)
    run(place, "layers.loss")
    assert [file.read_bytes() for file in files] == before


def loss_without(checkpoint, layers, batches):
    model = cut_model(checkpoint.model, KeptUnits.whole(checkpoint.shape).without(checkpoint.shape, layers))
    losses = [
        example_losses(model, checkpoint.extra_modules, batch.to(model.device), checkpoint.decoding)
        for batch in batches
    ]
    return float(torch.cat(losses).mean())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("model", "objective"), [("plain", "cot"), ("thinking", "latent"), ("base", "text")])
def test_losses_are_those_of_the_objective(place, rows, model, objective):
    """Of validation rows, or of a text of which one passage is a single token."""
    text = {"file": str(place / "text.txt"), "max_tokens": 5}
    table = run(place, "layers.loss", model, objective, {"text": text})
    checkpoint = load_checkpoint(place / model)
    if objective == "text":
        texts = read_text(Text(**text), 6)
        name, examples = text_name(texts, 5), 2
        batches = list(text_batches(checkpoint.tokenizer, texts, 4, 5))
    else:
        read, decoding = rows[1::3][:5], checkpoint.decoding
        name, examples = calibration_name(read, objective, decoding), 5
        batches = list(calibration_batches(checkpoint.tokenizer, read, objective, 4, decoding))
    assert set(table["calibration"]) == {name}
    assert set(table["examples"]) == {examples}
    whole = loss_without(checkpoint, [], batches)
    for row in table.itertuples():
        less = loss_without(checkpoint, [("layers", row.layer, row.layer)], batches)
        assert row.score == pytest.approx(less - whole, abs=1e-5)


def test_accuracy_is_that_of_the_settings(place, rows, monkeypatch):
    asked = []

    def spy(checkpoint, decoding, rows, max_new_tokens, answers, batch_size):
        asked.append((rows, max_new_tokens, answers))
        return predictions(checkpoint, decoding, rows, max_new_tokens, answers, batch_size)

    monkeypatch.setattr("copra.pruning.scoring.ablation.predictions", spy)
    run(place, "kv_groups.accuracy", max_new_tokens=3, answers="text")
    assert asked == [(rows[1::3][:5], 3, "text")] * 7


def test_greedy_settings_are_heeded(place):
    table = run(place, "layers.greedy_loss", importance={"greedy_removals": 1, "greedy_protect": [0, 2]})
    assert table[["layer", "score"]].to_numpy().tolist() == [[1, 0]]


def test_gates_read_what_their_settings_say(place):
    first, again, other = (
        run(
            place,
            "heads.gates",
            importance={"gates": {"steps": 3, "warmup_steps": 1, "batch_size": 2, "seed": seed}},
        )
        for seed in (4, 4, 5)
    )
    assert first.equals(again)
    assert not first.equals(other)
    text = {"objective": "text", "importance": {"text": {"file": str(place / "text.txt")}}}
    assert set(run(place, "heads.gates", "base", **text)["examples"]) == {2}


def test_a_killed_search_gives_the_table_of_an_unbroken_one(place, monkeypatch):
    measure, done = Ablation._loss, []

    def killed(self, cut):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(cut)
        return measure(self, cut)

    with monkeypatch.context() as patch:
        patch.setattr(Ablation, "_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            run(place, "layers.greedy_loss")
        assert not (place / "scores.parquet").exists()
        done.clear()
        table = run(place, "layers.greedy_loss")
        assert len(done) == 3 + 2 - 4
    (place / "state").rename(place / "elsewhere")
    assert run(place, "layers.greedy_loss").equals(table)


def test_other_code_measures_anew(place):
    for code in ("a", "b", None):
        run(place, "layers.loss", code=code)
    run(place, "layers.loss", code="a")
    files = list((place / "state").glob("*/loss.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [4, 4, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scoring": "layers.gates"},
            r"^--settings: there is no scoring 'layers.gates'; take one of passes, ",
        ),
        ({"scoring": "passes", "objective": "text"}, r"^importance.text: objective 'text' needs a text"),
        ({"scoring": "layers.loss", "model": "base", "objective": "latent"}, r"^objective: 'latent' reads"),
        (
            {"scoring": "layers.accuracy", "model": "base"},
            r"^accuracy: this model was never trained to answer",
        ),
        ({"scoring": "layers.greedy_accuracy", "model": "base"}, r"^accuracy: this model was never trained"),
        ({"scoring": "layers.greedy_loss", "importance": {"greedy_removals": 3}}, r"^importance.greedy_rem"),
    ],
)
def test_what_cannot_be_scored_is_told(place, settings, message):
    with pytest.raises(CopraError, match=message):
        run(place, **settings)
    assert not (place / "scores.parquet").exists()


def test_a_text_of_single_tokens_is_refused(place):
    (place / "text.txt").write_text("1\n2\n")
    with pytest.raises(CopraError, match=r"^importance.text: no passage has two tokens"):
        run(place, "heads.gates", objective="text", importance={"text": {"file": str(place / "text.txt")}})


def test_accuracy_needs_no_text(place, rows):
    """A text is what a loss is taken on."""
    assert set(run(place, "layers.accuracy", objective="text")["examples"]) == {5}
