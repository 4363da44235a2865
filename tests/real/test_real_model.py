"""The whole chain on a real pretrained model with grouped-query attention: few rows and every unit."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from copra.models.checkpoint import load_checkpoint
from copra.pruning.cut import KeptUnits
from copra.pruning.proof import masked
from copra.schema.metrics import BACKWARD_METRICS, SCORED_AS
from copra.schema.units import units_of
from copra.utils.files import read_json, read_parquet

IMPORTANCE = {"rows": 4, "batch_size": 4, "validation_rows": 1, "greedy_removals": 1}
IMPORTANCE |= {"gates": {"steps": 2, "warmup_steps": 0, "batch_size": 2}}


@pytest.fixture(scope="module")
def scores(place, trained):
    """The scores of one pass over the calibration rows, after the chain of thought."""
    return score(place, "passes")


def score(place, scoring: str):
    settings = {"scoring": scoring, "objective": "cot", "importance": IMPORTANCE, "max_new_tokens": 2}
    files = {"model": "real+cot", "data": "data", "state": "state", "output": f"scores/{scoring}.parquet"}
    return read_parquet(place.copra("score", settings, **files))


def pruned(place, name: str, **step):
    """The checkpoint after a pruning by the scores of one pass, and its plan."""
    step = {"kind": "prune", "metric": "taylor", **step}
    place.copra(
        "select",
        {"prune": step, "seed": 0},
        parent="real+cot",
        scores="scores/passes.parquet",
        output=f"plans/{name}.json",
    )
    node = f"real+cot+{name}"
    files = {"plan": f"plans/{name}.json", "parent": "real+cot", "data": "data", "output": node}
    return place.copra("prune", {"node": node}, **files), read_json(place.folder / f"plans/{name}.json")


@torch.inference_mode()
def test_the_base_computes_what_the_pretrained_model_does(place, model):
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer("Anna has 3 apples and buys 2 more.\n", return_tensors="pt")["input_ids"]
    base = load_checkpoint(place.folder / "real")
    assert base.tokenizer(base.tokenizer.decode(ids[0]))["input_ids"] == ids[0].tolist()
    logits = base.model(ids).logits[..., : plain.config.vocab_size]
    torch.testing.assert_close(logits, plain(ids).logits, atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_answers_are_those_of_transformers_own_generation(place, trained):
    settings = {"node": "real+cot", "task": "gsm8k", "max_new_tokens": 12, "batch_size": 3}
    files = {"model": "real+cot", "data": "data", "state": "state", "output": "evaluation"}
    folder = place.copra("evaluate", settings, **files)
    table = read_parquet(folder / "predictions.parquet")
    model = AutoModelForCausalLM.from_pretrained(trained["cot"])
    tokenizer = AutoTokenizer.from_pretrained(trained["cot"])
    for row in table.itertuples():
        ids = tokenizer(row.question + "\n", return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row.generated == tokenizer.decode(expected, skip_special_tokens=True)
    assert json.loads((folder / "metrics.json").read_text())["n"] == 4


@pytest.mark.parametrize("method", ["coconut", "codi"])
def test_latents_are_trained_and_answer(place, trained, method):
    lines = (trained[method] / "training.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(math.isfinite(json.loads(line)["gradient_norm"]) for line in lines)
    assert load_checkpoint(trained[method]).decoding.latents == 2
    settings = {"node": f"real+cot+{method}", "task": "gsm8k", "max_new_tokens": 4, "batch_size": 4}
    files = {"model": f"real+cot+{method}", "data": "data", "state": "state", "output": f"answers/{method}"}
    table = read_parquet(place.copra("evaluate", settings, **files) / "predictions.parquet")
    assert set(table["n_latent"]) == {2}


def test_one_pass_scores_every_unit_by_every_metric(place, trained, scores):
    shape = load_checkpoint(trained["cot"]).shape
    assert scores["score"].map(math.isfinite).all()
    for kind, metrics in BACKWARD_METRICS.items():
        for metric in metrics:
            found = scores[(scores["metric"] == metric) & (scores["unit"] == SCORED_AS[kind])]
            if metric not in ("angular", "angular_mean"):  # those score blocks of layers
                assert len(found) == len(units_of(kind, shape)), (kind, metric)


@pytest.mark.parametrize(
    ("scoring", "number"),
    [
        ("layers.loss", 30),
        ("layers.accuracy", 30),
        ("layers.greedy_loss", 1),
        ("layers.greedy_accuracy", 1),
        ("kv_groups.loss", 90),
        ("heads.gates", 270),
        ("kv_groups.gates", 90),
    ],
)
def test_every_other_scoring_runs(place, trained, scoring, number):
    table = score(place, scoring)
    assert len(table) == number
    assert table["score"].map(math.isfinite).all()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("layers", {"unit": "layers", "metric": "angular", "budget": {"fraction": 0.25}}),
        ("groups", {"unit": "kv_groups", "scope": "global", "budget": {"fraction": 0.4}}),
        ("heads", {"unit": "heads", "budget": {"fraction": 0.3333}}),
        ("neurons", {"unit": "neurons", "metric": "activation", "budget": {"fraction": 0.5}}),
        ("mixed", {"unit": ["layers", "kv_groups", "neurons"], "budget": {"flops": 0.6}}),
    ],
)
def test_a_cut_model_reloads_and_computes_what_the_masked_one_does(place, trained, scores, name, step):
    folder, plan = pruned(place, name, **step)
    left, dense = load_checkpoint(folder), load_checkpoint(trained["cot"])
    assert left.shape.to_json() == plan["shape_after"]
    assert left.manifest.parameters < dense.manifest.parameters
    assert left.manifest.lineage[-1]["proof"]["largest_logit_difference"] < 1e-4
    ids = dense.tokenizer("Anna has 3 apples and buys 2 more.\n", return_tensors="pt")["input_ids"]
    with masked(dense.model.double(), KeptUnits.from_json(plan["kept"])):
        expected = dense.model(ids).logits
    # transformers computes norms in float32 whatever the weights are.
    torch.testing.assert_close(left.model.double()(ids).logits, expected, atol=2e-3, rtol=0)
    # And where copra is not installed, as the checkpoint says itself.
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(plain.double()(ids).logits, expected, atol=2e-3, rtol=0)
