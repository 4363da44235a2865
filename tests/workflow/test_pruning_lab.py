"""The pruning laboratory in one run of Snakemake: a curve, two prunings, healing, and int8 weights."""

import json

import pandas
import pytest

from copra.experiment.provenance import read_record
from copra.utils.files import file_sha256
from helpers.tiny import TRAINING

COT = "llama@0+cot"
LONGER = {**TRAINING, "steps": 8}
LAB = {
    "bases__llama__from_scratch__layers": 3,
    "steps": {
        "cot": {"kind": "cot", "training": LONGER},
        "drop-1": {"kind": "prune", "unit": "layers", "metric": "greedy_loss", "budget": {"count": 1}},
        "mixed": {
            "kind": "prune",
            "unit": ["layers", "kv_groups", "neurons"],
            "metric": "taylor",
            "multiple_of": 8,
            "budget": {"flops": 0.25},
        },
        "heal": {"kind": "cot", "distil": {"task_weight": 0.0}, "training": LONGER},
        "int8": {"kind": "quantize", "weights": "int8"},
    },
    "recipes": [["cot"], ["cot", "drop-1", "heal"], ["cot", "mixed"], ["cot", "int8"]],
    "importance": {"rows": 16, "validation_rows": 16, "greedy_removals": 2},
    "curves": {
        "layers": {
            "model": "llama+cot",
            "unit": "layers",
            "metrics": ["cosine", "greedy_loss", "random"],
            "remove": [1, 2],
            "random_seeds": [0, 1],
        }
    },
    # Every answer has one token, so that FLOPs differ by what is left of the models alone.
    "evaluation": {"max_new_tokens": 1},
}
TABLES = ("accuracy_vs_flops", "before_fine_tuning", "pruning_curves", "drop_orders")


@pytest.fixture(scope="module")
def run(unstarted):
    """All but the tables' copies for people, which another test looks at."""
    run = unstarted.empty(unstarted.folder / "pruning-lab")
    run.configure(**LAB)
    run.snakemake("--omit-from", "export")
    return run


@pytest.fixture(scope="module")
def table(run):
    """Makes a table by its name."""
    return lambda name: pandas.read_parquet(run.results / "tables" / f"{name}.parquet")


@pytest.fixture(scope="module")
def recipes(table) -> pandas.DataFrame:
    frame = table("accuracy_vs_flops")
    return frame.set_index(frame["recipe"].str.removeprefix("llama+"))


def read(run, path):
    return json.loads((run.results / path).read_text())


def plan_of(run, step):
    return read(run, f"plans/{COT}+{step}.json")


def test_it_makes_every_table_and_figure(run):
    made = {
        str(path.relative_to(run.results))
        for folder in ("tables", "figures")
        for path in (run.results / folder).rglob("*")
        if path.is_file()
    }
    figures = ("accuracy_vs_flops", "after_fine_tuning", "training_curves")
    figures += ("pruning_curves/layers", "drop_orders/layers")
    figures += (f"layer_distances/{COT}/cot", f"head_importance/{COT}/cot")
    tables = {f"tables/{name}.parquet" for name in TABLES}
    assert made == tables | {f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png")}


def test_nothing_else_is_left_to_do(run):
    written = {f"Writing table {name} as CSV, Markdown and LaTeX" for name in TABLES}
    assert run.would_run() == written


def test_flops_are_those_that_the_budgets_leave(run, recipes):
    """A layer's FLOPs go with it; in what is left, attention's go by KV groups and the FFN's by neurons."""
    assert list(recipes.index) == ["cot", "cot+drop-1+heal", "cot+mixed", "cot+int8"]
    whole = recipes.loc["cot"]
    assert (recipes["generated_tokens"] == 1).all()
    assert (recipes["head_flops"] == whole["head_flops"]).all()
    parts = recipes[["attention_flops", "ffn_flops"]] / whole[["attention_flops", "ffn_flops"]]
    assert parts.loc["cot+drop-1+heal"].tolist() == pytest.approx([2 / 3, 2 / 3])
    plan, mixed = plan_of(run, "mixed"), recipes.loc["cot+mixed"]
    left = {kind: count["after"] for kind, count in plan["counts"].items()}
    assert {kind: mixed[kind] for kind in left} == left
    assert parts.loc["cot+mixed"].tolist() == pytest.approx([left["kv_groups"] / 6, left["neurons"] / 96])
    assert recipes["flops_ratio"]["cot+int8"] == recipes["flops_ratio"]["cot"] == 1


def test_the_mixed_pruning_meets_its_budget_with_several_kinds(run, recipes):
    """To half of the FLOPs of a layer, the largest unit; no kind alone gets below 0.38."""
    plan, layer = plan_of(run, "mixed"), 1 - plan_of(run, "drop-1")["flops"]["ratio"]
    assert plan["flops"]["ratio"] == pytest.approx(0.25, abs=layer / 2)
    kinds = {removed["unit"] for removed in plan["removed"]}
    assert len(kinds) > 1
    assert kinds <= set(LAB["steps"]["mixed"]["unit"])
    # An answer of one token has less of the LM head, which nothing prunes, than the answers of the plan.
    assert plan["flops"]["ratio"] - 0.1 < recipes["flops_ratio"]["cot+mixed"] < plan["flops"]["ratio"]


def test_int8_weights_take_fewer_bytes_and_nothing_else(run, recipes):
    before, after = recipes.loc["cot"], recipes.loc["cot+int8"]
    file = run.results / "models" / f"{COT}+int8" / "model.safetensors"
    assert after["checkpoint_bytes"] == file.stat().st_size < before["checkpoint_bytes"]
    for same in ("parameters", "layers", "kv_groups", "heads", "neurons", "kv_cache_bytes_per_token"):
        assert after[same] == before[same]
    assert (after["pruning"], after["method"]) == ("int8", "cot")


def test_the_curve_has_every_metric_at_every_number_of_layers(run, table):
    curve = table("pruning_curves")
    orders = table("drop_orders").set_index("metric")["drops"].str.split(", ")
    assert set(curve["metric"]) == {"cosine", "greedy_loss", "random"}
    assert set(orders.index) == {"cosine", "greedy_loss"}
    assert curve["random_seed"].dropna().tolist() == [0, 0, 0, 1, 1, 1]
    for metric, line in curve.groupby("metric"):
        assert line["removed"].tolist() == [0, 1, 2] * (2 if metric == "random" else 1)
        assert (line["left"] == 3 - line["removed"]).all()
        assert line["attention_flops_ratio"].tolist() == pytest.approx((line["left"] / 3).tolist())
        gone = [[] if cut == "nothing" else cut.split(", ") for cut in line["cut"]]
        assert [len(set(layers)) for layers in gone] == line["removed"].tolist()
        if metric != "random":
            assert gone == [sorted(orders[metric][:number]) for number in range(3)]
    assert (curve["n"] == 60).all()
    assert curve.groupby("cut")["loss"].nunique().eq(1).all()
    assert curve["loss"].nunique() > 3
    # The step takes the very layer that the curve's line of the same metric takes first.
    (removed,) = plan_of(run, "drop-1")["removed"]
    assert [str(removed["layer"])] == orders["greedy_loss"][:1]


def test_orders_say_which_scores_they_were_made_of(run):
    scores = [
        run.results / "scores" / COT / "cot" / f"{name}.json" for name in ("passes", "layers.greedy_loss")
    ]
    made_of = {file_sha256(file) for file in (*scores, run.results / "models" / COT / "copra.json")}
    for path in ("tables/drop_orders.parquet", "figures/drop_orders/layers.svg"):
        assert set(read_record(run.results / path)["files"]) == made_of


def test_healing_learns_from_the_model_before_the_pruning(run):
    folder = run.results / "models" / f"{COT}+drop-1+heal"
    last = read(run, folder / "copra.json")["lineage"][-1]
    dense = read(run, f"models/{COT}/copra.json")["weights"]["sha256"]
    assert last["teacher"] == {"node": COT, "sha256": dense}
    assert last["parent"] == read(run, f"models/{COT}+drop-1/copra.json")["weights"]["sha256"]
    assert last["record"]["work"]["teacher"] == last["record"]["work"]["model"]


def test_only_what_searches_and_curves_have_measured_stays_in_state(run):
    left = [path.name for path in (run.results / "state").rglob("*") if path.is_file()]
    assert sorted(left) == ["accuracy.jsonl", "loss.jsonl", "loss.jsonl"]
    assert all(len(list(path.iterdir())) == 1 for path in (run.results / "state").iterdir())
