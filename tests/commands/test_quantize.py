"""copra quantize: int8 weights under a manifest of their own, evaluated and timed as any other model."""

import json
from argparse import ArgumentParser

import pytest
import torch

from copra.commands import curve, evaluate, latency, prune, quantize, score, train
from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import WEIGHTS, save_checkpoint
from copra.models.manifest import Manifest
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, read_json, read_parquet
from helpers.manifests import provenance

KNOWN = provenance(
    "tiny@0+cot",
    method="cot",
    lineage=[{"step": "cot"}],
    decoding=GenerationSpec((), 0, "hidden", 3, ()),
    training_flops=77,
    base={"dtype": "float32"},
)


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data and a checkpoint."""
    made = word_base()
    save_checkpoint(tmp_path / "parent", made.model, made.tokenizer, KNOWN, {"training.jsonl": "log"})
    return tmp_path


def run(verb, settings, **paths):
    parser = ArgumentParser()
    verb.arguments(parser)
    named = {name: path if isinstance(path, list) else [path] for name, path in paths.items()}
    words = [word for name, given in named.items() for word in (f"--{name}", *map(str, given))]
    verb.run(parser.parse_args(["--settings", json.dumps(settings), *words]))


def to_int8(place, parent="parent", output="int8"):
    settings = {"node": "tiny@0+cot+int8", "quantize": {"kind": "quantize", "weights": "int8"}}
    run(
        quantize,
        settings,
        parent=place / parent / MANIFEST,
        data=place / "data" / "valid.parquet",
        output=place / output / MANIFEST,
    )
    return Manifest.read(place / output)


def test_the_manifest_says_what_was_done(place):
    parent, found = Manifest.read(place / "parent"), to_int8(place)
    assert found.node == "tiny@0+cot+int8"
    assert found.quantized == "int8"
    for name in ("base", "seed", "method", "decoding", "dense_shape", "typical_answer", "training_flops"):
        assert getattr(found, name) == getattr(KNOWN, name)
    for name in ("shape", "parameters", "versions"):
        assert getattr(found, name) == getattr(parent, name)
    assert found.weights.bytes < parent.weights.bytes
    first, step = found.lineage
    assert first == {"step": "cot"}
    assert (step["step"], step["parent"]) == ("int8", parent.weights.sha256)
    assert step["quantize"] == {"kind": "quantize", "weights": "int8"}
    assert step["torchao"].startswith("0.")
    assert step["proof"]["rows"] == 8
    assert 0 < step["proof"]["largest_logit_difference"] < 0.1
    assert 0 < abs(step["proof"]["loss_after"] - step["proof"]["loss_before"]) < 0.01
    assert not (place / "int8" / "training.jsonl").exists()
    assert found == to_int8(place, output="again")


def test_it_is_evaluated_and_timed_as_any_other(place):
    to_int8(place)
    metrics = {}
    for name in ("parent", "int8"):
        run(
            evaluate,
            {"node": name, "task": "sums", "max_new_tokens": 8, "batch_size": 3},
            model=place / name / MANIFEST,
            data=place / "data" / "test.parquet",
            state=place / "state",
            output=place / "evaluations" / name / "metrics.json",
        )
        metrics[name] = read_json(place / "evaluations" / name / "metrics.json")
    assert metrics["int8"]["n"] == 8
    for name in ("parameters", "kv_cache_bytes_per_token", "training_flops"):
        assert metrics["int8"][name] == metrics["parent"][name]
    assert metrics["int8"]["checkpoint_bytes"] == (place / "int8" / WEIGHTS).stat().st_size
    assert metrics["int8"]["checkpoint_bytes"] < metrics["parent"]["checkpoint_bytes"]
    sizes = {"questions": 2, "batch_size": 4, "repetitions": 1, "forced_tokens": 2, "max_new_tokens": 4}
    run(
        latency,
        sizes,
        models=[place / name / MANIFEST for name in ("parent", "int8")],
        data=place / "data" / "test.parquet",
        output=place / "latency.parquet",
    )
    times = read_parquet(place / "latency.parquet")
    assert times["seconds_per_answer"].gt(0).all()
    assert dict(zip(times["node"], times["dtype"], strict=True)) == {
        "tiny@0+cot": "float32",
        "tiny@0+cot+int8": "int8",
    }


def test_logits_that_are_no_numbers_leave_no_checkpoint(place, word_base):
    made = word_base(seed=1)
    with torch.no_grad():
        made.model.base_model.layers[0].mlp.up_proj.weight.fill_(3e38)
    save_checkpoint(place / "broken", made.model, made.tokenizer, KNOWN)
    with pytest.raises(CopraError, match="a logit is not a finite number"):
        to_int8(place, parent="broken")
    assert not (place / "int8").exists()


TRAINING = {"learning_rate": 1e-3, "steps": 1, "batch_size": 4, "num_validations": 1}
INT8 = {"kind": "quantize", "weights": "int8"}
CURVE = {"model": "tiny+cot+int8", "unit": "layers", "metrics": ["deepest"], "remove": [1]}
TRAIN = {"node": "again", "method": "cot", "stage": {}, "training": TRAINING, "seed": 0}
# The verb, its settings, the option that names the checkpoint, and other paths.
CHANGES = [
    (train, TRAIN, "parent", ("state",)),
    (prune, {"node": "again"}, "parent", ("plan",)),
    (score, {"scoring": "passes", "objective": "cot", "importance": {}}, "model", ("state",)),
    (curve, {"node": "again", "name": "a", "curve": CURVE}, "model", ("scores", "state")),
    (quantize, {"node": "again", "quantize": INT8}, "parent", ()),
]


def test_nothing_but_answering_follows(place, monkeypatch):
    """It is refused before it is loaded, so also where there is no torchao."""
    to_int8(place)
    (place / "plan").write_text("{}")
    monkeypatch.setattr("copra.models.quantized.is_torchao_available", lambda version: False)
    message = r"int8: is quantized already, .* made of, tiny@0\+cot, and quantize last"
    for verb, settings, option, others in CHANGES:
        paths = {name: place / name for name in ("data", *others)} | {option: place / "int8"}
        with pytest.raises(CopraError, match=message):
            run(verb, settings, **paths, output=place / "again")
    assert not (place / "again").exists()
    assert not (place / "state").exists()
