"""copra train from the command line's settings to the checkpoint."""

import json
from argparse import ArgumentParser

import pytest
import torch
from stages import drop_a_layer, same_extra_modules, train_stage

from copra.commands import base as base_verb
from copra.commands.common import summary_of
from copra.cost.flops import FlopCounter, of_training_work
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import MARKERS, markers_of, tokenize
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.extra_modules import StepDecoder
from copra.models.portable import CODE
from copra.tasks.prepare import Prepared, data_record, read_rows, write_split
from copra.training import loop
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256


def test_a_stage_becomes_a_checkpoint(place, rows):
    checkpoint = train_stage(place, "tiny", "coconut", "coconut", stage=2, steps=None, epochs=2)
    manifest = checkpoint.manifest
    markers = markers_of(checkpoint.tokenizer)
    assert manifest.decoding == GenerationSpec((markers.start,), 1, "hidden", markers.latent, (markers.end,))
    assert (manifest.node, manifest.method, manifest.seed) == ("tiny@0+coconut", "coconut", 3)
    (done,) = manifest.lineage
    assert (done["step"], done["record"]["steps"], done["record"]["rows"]) == ("coconut", 4, 16)
    # Two epochs of samples: the question, start, one latent, end, the answer.
    lengths = [len(row.question) + 3 + len(row.answer) for row in tokenize(checkpoint.tokenizer, rows[:16])]
    supervised = [len(row.answer) for row in tokenize(checkpoint.tokenizer, rows[:16])]
    counts = (2 * sum(lengths), 2 * sum(n * n for n in lengths), 2 * sum(supervised))
    assert (
        tuple(done["record"]["work"]["model"][name] for name in ("tokens", "context", "supervised")) == counts
    )
    assert manifest.training_flops == FlopCounter(checkpoint.shape).of_training(*counts) > 0
    log = (place / "coconut" / loop.LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
    assert not any((place / "state").iterdir())


def test_a_stage_that_stops_early_counts_the_steps_that_it_took(place):
    """A fall of 100 is no improvement that a loss can make, so the second validation of four ends it."""
    stop = {"patience": 1, "min_delta": 100.0}
    checkpoint = train_stage(place, "tiny", "cot", steps=8, num_validations=4, stop_early=stop)
    (done,) = checkpoint.manifest.lineage
    record = done["record"]
    assert (record["steps"], record["max_steps"], record["stop_reason"]) == (4, 8, "plateau")
    assert done["training"]["stop_early"]["patience"] == 1
    shorter = train_stage(place, "tiny", "shorter", steps=4)
    assert "max_steps" not in shorter.manifest.lineage[0]["record"]
    assert checkpoint.manifest.training_flops == shorter.manifest.training_flops > 0
    log = (place / "cot" / loop.LOG).read_text()
    assert log == (place / "shorter" / loop.LOG).read_text()


def test_stages_add_up(place):
    first = train_stage(place, "tiny", "cot")
    second = train_stage(place, "cot", "coconut", "coconut", stage=1)
    assert [done["step"] for done in second.manifest.lineage] == ["cot", "coconut"]
    assert second.manifest.lineage[1]["parent"] == first.manifest.weights.sha256
    own = second.manifest.lineage[1]["record"]["flops"]
    assert second.manifest.training_flops == first.manifest.training_flops + own


def test_equal_runs_give_equal_checkpoints(place):
    for output in ("one", "two"):
        train_stage(place, "tiny", output, select_best_by="accuracy")
    one, two = (json.loads((place / output / MANIFEST).read_text()) for output in ("one", "two"))
    assert one["weights"] == two["weights"]
    for name in ("node", "digest"):
        assert one.pop(name) != two.pop(name)
    assert one["lineage"][0].pop("step") != two["lineage"][0].pop("step")
    assert one["made_by"]["settings"].pop("node") != two["made_by"]["settings"].pop("node")
    assert one == two
    assert (place / "one" / loop.LOG).read_text() == (place / "two" / loop.LOG).read_text()


def test_an_interrupted_stage_ends_in_the_same_checkpoint(place, monkeypatch):
    train_stage(place, "tiny", "cot")
    whole = {path.name: path.read_bytes() for path in (place / "cot").iterdir()}
    (place / "cot").rename(place / "undisturbed")
    optimize = loop.Trainer._optimize

    def dying(self, *arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return optimize(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_optimize", dying)
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "tiny", "cot")
    assert not (place / "cot").exists()
    assert len(list((place / "state").glob("*/step-*"))) == 2
    train_stage(place, "tiny", "cot")
    assert {path.name: path.read_bytes() for path in (place / "cot").iterdir()} == whole


def test_a_state_serves_its_own_settings_only(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "log_text", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_stage(place, "tiny", "cot")
    other = train_stage(place, "tiny", "cot", learning_rate=1e-3)
    log = [json.loads(line) for line in (place / "cot" / loop.LOG).read_text().splitlines()]
    assert [line["learning_rate"] for line in log] == [1e-3] * 4
    assert other.manifest.lineage[0]["training"]["learning_rate"] == 1e-3


def test_a_training_that_breaks_down_leaves_no_checkpoint(place):
    with pytest.raises(CopraError, match=r"step \d+: loss .*Batch of rows [0-9a-f]{16}"):
        train_stage(place, "tiny", "cot", steps=40, learning_rate=50.0)
    assert not (place / "cot").exists()


def marker_rows(checkpoint):
    ids = checkpoint.tokenizer.convert_tokens_to_ids(list(MARKERS))
    return checkpoint.model.get_input_embeddings().weight[ids].detach()


@pytest.mark.slow
@pytest.mark.parametrize("thought", ["hidden", "none"])
def test_markers_start_when_they_are_first_trained(place, monkeypatch, thought):
    """At the row of the line break, since these rows have no `<<`; a second stage goes on with them."""
    started = []
    run = loop.Trainer.run

    def spy(self):
        ids = [self.markers.start, self.markers.latent, self.markers.end]
        weight = self.model.get_input_embeddings().weight
        started.append((weight[ids].detach().clone(), weight[line_break].detach().clone()))
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", spy)
    base = load_checkpoint(place / "tiny")
    (line_break,) = base.tokenizer("\n")["input_ids"]
    train_stage(place, "tiny", "cot")
    assert torch.equal(started[-1][0], marker_rows(base))
    kind = "coconut" if thought == "hidden" else "no_cot"
    first = train_stage(place, "cot", "first", kind, stage=1 if kind == "coconut" else 0)
    if thought == "none":
        assert not torch.equal(started[-1][0], started[-1][1].expand(3, -1))
        return
    assert torch.equal(started[-1][0], started[-1][1].expand(3, -1))
    train_stage(place, "first", "second", "coconut", stage=2)
    assert torch.equal(started[-1][0], marker_rows(first))


@pytest.mark.slow
def test_trained_markers_stay_through_a_training_without_them(place, monkeypatch):
    train_stage(place, "tiny", "latents", "coconut", stage=1)
    words = train_stage(place, "latents", "words")
    assert words.manifest.trained_markers
    assert words.manifest.decoding.prefix_ids == ()
    started = rows_at_start(monkeypatch)
    train_stage(place, "words", "again", "coconut", stage=1)
    assert torch.equal(started[0], marker_rows(words))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coconut", "cot"])
def test_a_checkpoint_that_becomes_a_base_keeps_its_trained_markers(place, monkeypatch, kind):
    """Of one that was trained on words alone they begin anew."""
    trained = train_stage(place, "tiny", kind, kind, stage=1 if kind == "coconut" else 0)
    make_base(place, place / kind, "base")
    base = load_checkpoint(place / "base")
    assert torch.equal(marker_rows(base), marker_rows(trained))
    assert base.manifest.trained_markers == (kind == "coconut")
    started = rows_at_start(monkeypatch)
    train_stage(place, "base", "again", "coconut", stage=1)
    assert torch.equal(started[0], marker_rows(trained)) == (kind == "coconut")


def rows_at_start(monkeypatch):
    """The markers' rows with which each training begins, filled as trainings go."""
    started = []
    run = loop.Trainer.run

    def spy(self):
        ids = [self.markers.start, self.markers.latent, self.markers.end]
        started.append(self.model.get_input_embeddings().weight[ids].detach().clone())
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", spy)
    return started


def make_base(place, source, name):
    """Run `copra base` on a folder."""
    parser = ArgumentParser()
    base_verb.arguments(parser)
    settings = json.dumps({"node": f"{name}@0", "base": {"path": str(source)}, "seed": None})
    folders = ["--data", str(place / "data"), "--output", str(place / name)]
    base_verb.run(parser.parse_args(["--settings", settings, *folders]))


def test_rows_longer_than_the_model_are_refused(place, word_base, rows):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions: set training\.max_tokens"):
        train_stage(place, "short", "cot")
    train_stage(place, "short", "cot", max_tokens=20)
    # No step is left, so the longest row has 9 + 3 tokens.
    train_stage(place, "short", "no-cot", "no_cot")


def test_validation_rows_longer_than_the_model_are_refused_too(place):
    parent = load_checkpoint(place / "tiny")
    parent.model.config.max_position_embeddings = 20
    save_checkpoint(place / "short", parent.model, parent.tokenizer, parent.manifest)
    table = place / "data" / "train.parquet"
    rows = [row for row in read_rows(table) if len(row.steps) == 1]
    write_split(Prepared("train", rows, data_record(table)), table.parent)
    with pytest.raises(CopraError, match=r"has 30 tokens, .* 20 positions"):
        train_stage(place, "short", "cot")


@pytest.mark.slow
def test_a_projection_goes_on_from_stage_to_stage(place, monkeypatch):
    """And a step decoder, which the next method does not want, stays behind."""
    projected = {"latent_input": "projected", "auxiliary_decoder": {"layers": 1}}
    first = train_stage(place, "tiny", "first", "coconut", 1, method=projected)
    assert first.manifest.extra_modules.settings == {"projection": {}, "step_decoder": {"layers": 1}}
    started, run = [], loop.Trainer.run

    def spy(self):
        started.append({name: part.state_dict() for name, part in self.extra_modules.items()})
        started[-1] = {name: {k: v.clone() for k, v in part.items()} for name, part in started[-1].items()}
        return run(self)

    monkeypatch.setattr(loop.Trainer, "run", spy)
    second = train_stage(place, "first", "second", "codi", 0, method={"latents": 1})
    assert set(started[0]) == set(second.extra_modules) == {"projection"}
    for name, value in first.extra_modules["projection"].state_dict().items():
        assert torch.equal(started[0]["projection"][name], value)
    assert not same_extra_modules(first, second, "projection")
    third = train_stage(place, "second", "third", "cot")
    assert third.manifest.extra_modules is None


@pytest.mark.slow
def test_a_decoder_starts_as_the_pretrained_model_and_goes_on(place, monkeypatch):
    started, run = [], loop.Trainer.run

    def spy(self):
        started.append({k: v.clone() for k, v in self.extra_modules["step_decoder"].state_dict().items()})
        return run(self)

    train_stage(place, "tiny", "cot", learning_rate=1e-2)
    monkeypatch.setattr(loop.Trainer, "run", spy)
    method = {"auxiliary_decoder": {"decoder": "pretrained", "step_loss": "sum"}}
    first = train_stage(place, "cot", "first", "coconut", 1, method=method, pretrained="tiny")
    pretrained = load_checkpoint(place / "tiny")
    expected = StepDecoder(pretrained.model, None).state_dict()
    assert set(started[0]) == set(expected)
    assert all(torch.equal(started[0][name], value) for name, value in expected.items())
    assert first.manifest.extra_modules.settings == {"step_decoder": {"layers": None}}
    sha256 = pretrained.manifest.weights.sha256
    assert first.manifest.lineage[-1]["pretrained"] == {"node": "tiny@0", "sha256": sha256}
    files = [place / node / MANIFEST for node in ("cot", "tiny")]
    files += [summary_of(place / "data", split) for split in ("train", "valid")]
    made_of = {file_sha256(file) for file in files}
    assert set(first.manifest.made_by["files"]) == made_of
    learned = first.extra_modules["step_decoder"].state_dict()
    assert not all(torch.equal(learned[name], value) for name, value in expected.items())
    second = train_stage(place, "first", "second", "coconut", 2, method=method)
    assert all(torch.equal(started[1][name], value) for name, value in learned.items())
    work = second.manifest.lineage[-1]["record"]["work"]
    counter = FlopCounter(second.shape)
    assert second.manifest.lineage[-1]["record"]["flops"] == sum(
        counter.of_training(**work[reader]) for reader in ("model", "step_decoder")
    )


def test_a_pretrained_model_of_another_shape_is_refused(place):
    drop_a_layer(place, "tiny", "short")
    method = {"auxiliary_decoder": {"decoder": "pretrained"}}
    with pytest.raises(CopraError, match=r"^--pretrained: .*short must have the shape of the model"):
        train_stage(place, "tiny", "out", "coconut", 1, method=method, pretrained="short")


@pytest.mark.slow
def test_adapters_end_in_a_plain_checkpoint(place):
    lora = {"rank": 2, "alpha": 4.0}
    adapted = train_stage(place, "tiny", "adapted", "codi", 0, lora=lora, select_best_by="accuracy")
    parent = load_checkpoint(place / "tiny")
    assert set(adapted.model.state_dict()) == set(parent.model.state_dict())
    assert {file.name for file in (place / "adapted").iterdir()} == {
        file.name for file in (place / "tiny").iterdir()
    } | {"training.jsonl", "extra_modules.safetensors", *CODE}
    done = adapted.manifest.lineage[-1]
    assert done["training"]["lora"]["rank"] == 2
    flops = of_training_work(parent.shape, done["record"]["work"], lora=2)
    assert adapted.manifest.training_flops == flops < of_training_work(parent.shape, done["record"]["work"])
    # The same training again gives the same weights.
    again = train_stage(place, "tiny", "again", "codi", 0, lora=lora, select_best_by="accuracy")
    assert again.manifest.weights == adapted.manifest.weights
    assert again.manifest.extra_modules == adapted.manifest.extra_modules
