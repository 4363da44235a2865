"""From the training of a looped model to its answers, times and int8 weights, by the commands."""

import json
from argparse import ArgumentParser

import pytest
import torch

from copra.commands import evaluate, latency, quantize, train
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import tokenize
from copra.methods import METHODS
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.manifest import Manifest
from copra.models.portable import unmarked_config
from copra.models.visits import unlooped
from copra.schema.loop import Loop
from copra.tasks.prepare import read_rows
from copra.utils.errors import CopraError
from copra.utils.files import read_json, read_parquet
from helpers.manifests import provenance
from helpers.unrolled import unrolled

TRAINING = {"learning_rate": 3e-3, "steps": 4, "batch_size": 4, "num_validations": 2}
# Two layers; the second one is visited three times.
BLOCK = Loop(layers=(1, 1), times=3)
VISITS = [0, 1, 1, 1]


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data and an untrained base."""
    made = word_base(initializer_range=0.3)
    save_checkpoint(tmp_path / "base", made.model, made.tokenizer, provenance(base={"dtype": "float32"}))
    return tmp_path


def run(command, settings, **paths):
    parser = ArgumentParser()
    command.arguments(parser)
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    command.run(parser.parse_args(["--settings", json.dumps(settings), *words]))


def train_step(place, output, kind="looped", parent="base", teacher=None, training=TRAINING, **method):
    """Train by `copra train`; return the manifest."""
    step = METHODS[kind].model_validate({"kind": kind, "training": training, **method})
    settings = {"node": f"tiny@0+{output}", "method": kind, "seed": 3, "training": step.training.canonical()}
    settings["stage"] = step.resolved_stages()[0].canonical()
    paths = {"parent": place / parent, "data": place / "data", "state": place / "state"}
    paths |= {"teacher": place / teacher} if teacher else {}
    run(train, settings, **paths, output=place / output)
    return Manifest.read(place / output)


def metrics_of(place, model, **settings):
    given = {"node": model, "task": "sums", "max_new_tokens": 6, "batch_size": 3, **settings}
    paths = {"model": place / model, "data": place / "data", "state": place / "state"}
    run(evaluate, given, **paths, output=place / "evaluations" / model)
    return read_json(place / "evaluations" / model / "metrics.json")


def test_a_looped_training_writes_an_ordinary_model_and_its_loop(place):
    base, manifest = Manifest.read(place / "base"), train_step(place, "looped", loop=BLOCK.canonical())
    assert manifest.loop == BLOCK
    assert manifest.lineage[-1]["stage"]["loop"] == {"layers": [1, 1], "times": 3}
    assert (manifest.shape, manifest.parameters) == (base.shape, base.parameters)
    config = read_json(place / "looped" / "config.json")
    assert config["thinking"]["visits"] == [0, 1, 1, 1]
    assert config["num_hidden_layers"] == read_json(place / "base" / "config.json")["num_hidden_layers"] == 2
    assert unmarked_config(place / "looped").num_hidden_layers == 2


def test_training_flops_count_every_visit(place):
    """Beside `no_cot` on the same rows, whose layers have the same sizes: 4 visits instead of 2 layers."""
    flops = {
        times: train_step(place, f"looped-{times}", loop={"layers": [1, 1], "times": times}).training_flops
        for times in (1, 2, 3)
    }
    layer = flops[2] - flops[1]
    assert flops[3] - flops[2] == pytest.approx(layer)
    assert flops[1] == train_step(place, "plain", "no_cot").training_flops
    assert layer < flops[1] < 3 * layer


def test_a_single_pass_trains_the_model_of_no_cot(place):
    once = train_step(place, "once", loop={"times": 1})
    plain = train_step(place, "plain", "no_cot")
    assert once.files["model.safetensors"] == plain.files["model.safetensors"]
    assert train_step(place, "twice").files["model.safetensors"] != plain.files["model.safetensors"]


def test_it_answers_as_the_plain_model_at_its_cost(place):
    """Against the model with a copy of the block for each pass, by the same commands."""
    train_step(place, "looped", loop=BLOCK.canonical())
    looped = load_checkpoint(place / "looped")
    with unlooped(looped.model):
        plain = unrolled(looped.model, VISITS)
    spec = looped.decoding
    known = provenance(decoding=GenerationSpec((), 0, "hidden", spec.latent_token, ()))
    save_checkpoint(place / "plain", plain, looped.tokenizer, known)
    found, expected = metrics_of(place, "looped"), metrics_of(place, "plain")
    answers = [
        read_parquet(place / "evaluations" / name / "predictions.parquet") for name in ("looped", "plain")
    ]
    assert list(answers[0]["generated"]) == list(answers[1]["generated"])
    for name in ("accuracy", "flops", "tokens", "kv_cache_bytes_per_token"):
        assert found[name] == expected[name], name
    assert found["kv_cache_bytes_per_token"] == 4 * 2 * 2 * 8 * 4
    # Four visits of two layers are as deep as two passes.
    assert found["depth"] == 2 * expected["depth"]
    assert found["units"]["layers"] == 2
    assert found["parameters"] == looped.manifest.parameters < expected["parameters"]
    assert read_json(place / "evaluations" / "looped" / "metrics.json")["training_flops"] > 0


def test_it_is_timed(place):
    train_step(place, "looped")
    sizes = {"questions": 2, "batch_size": 4, "repetitions": 1, "forced_tokens": 2, "max_new_tokens": 4}
    paths = {"models": place / "looped", "data": place / "data"}
    run(latency, sizes, **paths, output=place / "latency.parquet")
    assert read_parquet(place / "latency.parquet")["seconds_per_answer"].gt(0).all()


@pytest.mark.slow
def test_a_later_training_is_of_the_ordinary_model(place):
    train_step(place, "looped")
    later = train_step(place, "later", "cot", parent="looped")
    assert later.loop is None
    relabelled = load_checkpoint(place / "looped", looped=False)
    save_checkpoint(place / "ordinary", relabelled.model, relabelled.tokenizer, provenance())
    alone = train_step(place, "alone", "cot", parent="ordinary")
    assert later.files["model.safetensors"] == alone.files["model.safetensors"]
    again = train_step(place, "again", parent="looped", loop=BLOCK.canonical())
    assert again.loop == BLOCK


def test_a_looped_model_teaches_as_it_answers(place):
    """The student's first loss is zero where it starts from its teacher with the teacher's loop."""
    looped = Loop(times=2).canonical()
    train_step(place, "looped", loop=looped)
    training = TRAINING | {"steps": 1, "learning_rate": 1e-9, "num_validations": 1}
    losses = {}
    for name, kind, method in (("same", "looped", {"loop": looped}), ("once", "no_cot", {})):
        train_step(place, name, kind, "looped", "looped", training, distil={}, **method)
        line = json.loads((place / name / "training.jsonl").read_text().splitlines()[0])
        losses[name] = line["loss"]
    assert losses["same"] == pytest.approx(0, abs=1e-6)
    assert losses["once"] > 1e-3


def test_a_block_that_the_model_lacks_is_refused(place):
    with pytest.raises(CopraError, match=r"^loop\.layers: there is no layer 2\. The model has 2 layers"):
        train_step(place, "looped", loop={"layers": [1, 2]})
    assert not (place / "looped").exists()


@pytest.mark.slow
def test_int8_weights_answer_with_the_loop(place):
    train_step(place, "looped", loop=BLOCK.canonical())
    settings = {"node": "tiny@0+looped+int8", "quantize": {"kind": "quantize", "weights": "int8"}}
    run(quantize, settings, parent=place / "looped", data=place / "data", output=place / "int8")
    manifest, parent = (Manifest.read(place / name) for name in ("int8", "looped"))
    assert (manifest.loop, manifest.shape) == (BLOCK, parent.shape)
    checkpoint = load_checkpoint(place / "looped")
    proof = manifest.lineage[-1]["proof"]
    # The loss of the looped model, not of the ordinary one.
    for name, other in (("loss_before", checkpoint), ("loss_after", load_checkpoint(place / "int8"))):
        assert proof[name] == pytest.approx(mean_loss(place, other), rel=1e-5)
    found, expected = metrics_of(place, "int8"), metrics_of(place, "looped")
    for name in ("depth", "kv_cache_bytes_per_token"):
        assert found[name] == pytest.approx(expected[name]), name


@torch.no_grad()
def mean_loss(place, checkpoint) -> float:
    """Mean loss per token of steps and answer over the rows for validation, by transformers' own."""
    losses = []
    for row in tokenize(checkpoint.tokenizer, read_rows(place / "data" / "valid.parquet")):
        text = [token for step in row.steps for token in step] + row.answer
        tokens = torch.tensor([row.question + text])
        labels = torch.tensor([[-100] * len(row.question) + text])
        losses += [float(checkpoint.model(tokens, labels=labels).loss)] * len(text)
    return sum(losses) / len(losses)
