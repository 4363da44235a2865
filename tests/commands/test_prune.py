"""copra select and copra prune: what a pruning records of its budget and of its proof."""

import json

import pytest

from copra.cli import main
from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import save_checkpoint
from copra.models.manifest import Manifest
from copra.models.shape import shape_of
from copra.pruning.proof import LIMIT
from copra.utils.files import read_json
from helpers.manifests import provenance

NODE = "tiny@0+cot+half"


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data and a checkpoint of three layers with two KV groups each."""
    made = word_base(layers=3)
    known = provenance(
        "tiny@0+cot",
        method="cot",
        lineage=[{"step": "cot"}],
        decoding=GenerationSpec((), 0, "hidden", 3, ()),
        training_flops=77,
        dense_shape=shape_of(made.model.config.to_dict()),
        typical_answer={"prompt": 5, "generated": 5},
    )
    save_checkpoint(tmp_path / "parent", made.model, made.tokenizer, known)
    return tmp_path


def select(place, **prune) -> int:
    settings = {"prune": {"kind": "prune", "unit": "layers", "metric": "deepest", **prune}, "seed": 0}
    words = ["--settings", json.dumps(settings), "--parent", place / "parent", "--scores"]
    return main(["select", *map(str, words), "--output", str(place / "plan.json")])


def test_what_misses_its_budget_is_told_and_recorded(place, capsys):
    """Half of three layers is one, which is two thirds of what was asked."""
    assert select(place, budget={"fraction": 0.5}) == 0
    told = (
        "Warning: budget.fraction: 0.5 of 3 layers: the nearest legal cut removes 1, 33% less than asked.\n"
    )
    assert capsys.readouterr().out == told
    words = ["--settings", json.dumps({"node": NODE}), "--parent", place / "parent", "--plan"]
    words += [place / "plan.json", "--data", place / "data", "--output", place / "pruned"]
    assert main(["prune", *map(str, words)]) == 0
    manifest = Manifest.read(place / "pruned")
    assert manifest.budget_missed == pytest.approx(-1 / 3)
    proof = manifest.lineage[-1]["proof"]
    assert (proof["dtype"], proof["limit"]) == ("float64", LIMIT)
    assert 0 <= proof["largest_logit_difference"] < LIMIT


def test_a_budget_that_is_met_is_no_news(place, capsys):
    assert select(place, budget={"count": 2}) == 0
    assert capsys.readouterr().out == ""
    assert read_json(place / "plan.json")["warning"] is None


def test_a_plan_that_removes_nothing_is_not_made(place, capsys):
    assert select(place, budget={"parameters": 0.9}) == 1
    assert "select: budget.parameters: 0.9 of the dense" in (error := capsys.readouterr().err)
    assert "nearest to removing nothing. The smallest legal cut removes 1 layers and leaves 0.6667" in error
    assert not (place / "plan.json").exists()
