import json
import math

import numpy
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copra.errors import CopraError
from copra.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from copra.report.formats import for_people
from copra.report.tables import accuracy_vs_flops, before_fine_tuning, pareto_front

DENSE, PRUNED = "llama+cot", "llama+cot+layers-1+coconut"


def _answers(seed, share, n=60):
    return numpy.random.default_rng(seed).random(n) < share


@pytest.fixture
def one_seed(write_evaluation, recipe):
    right = {"llama@0+cot": _answers(0, 0.8), "llama@0+cot+layers-1+coconut": _answers(1, 0.6)}
    folders = {
        node: write_evaluation(node, answers, flops)
        for (node, answers), flops in zip(right.items(), (1000, 400), strict=True)
    }
    settings = {
        "reference": DENSE,
        "recipes": [
            recipe(DENSE, "llama@0+cot"),
            recipe(PRUNED, "llama@0+cot+layers-1+coconut", pruning="layers-1", method="coconut"),
        ],
    }
    return folders, settings, list(right.values())


def test_one_row_a_recipe_with_its_statistics(one_seed):
    folders, settings, (dense, pruned) = one_seed
    table = accuracy_vs_flops(folders, None, settings)
    assert list(table["recipe"]) == [DENSE, PRUNED]
    assert list(table["seed"]) == ["all", "all"]
    assert list(table["reference"]) == [True, False]
    row = table.iloc[1]
    assert (row["base"], row["pruning"], row["method"]) == ("llama", "layers-1", "coconut")
    assert row["order"] == "cot > layers-1 > coconut"
    assert row["n"] == 60
    assert row["accuracy"] == pytest.approx(pruned.mean())
    assert (row["low"], row["high"]) == pytest.approx(wilson_interval(pruned.sum(), 60))
    assert row["difference"] == pytest.approx(pruned.mean() - dense.mean())
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(paired_bootstrap(pruned, dense))
    assert row["p_value"] == pytest.approx(mcnemar_exact(pruned, dense))
    assert math.isnan(row["deviation"])
    assert row["flops"] == pytest.approx(400)
    assert row["flops_ratio"] == pytest.approx(0.4)
    assert row["latent_flops"] == row["attention_flops"] == row["ffn_flops"] == row["head_flops"] == 100
    assert row["generated_tokens"] == row["latents"] == pytest.approx(1.0)
    assert (row["depth"], row["parameters"], row["checkpoint_bytes"]) == (5, 100, 400)
    assert (row["kv_cache_bytes_per_token"], row["training_flops"]) == (64, 7e12)
    assert list(row[["layers", "kv_groups", "heads", "neurons"]]) == [2, 4, 8, 96]
    assert math.isnan(row["seconds_batch_1"])
    assert math.isnan(row["seconds_batched"])
    assert list(table["pareto"]) == [True, True]


def test_the_reference_is_compared_with_nothing(one_seed):
    folders, settings, _ = one_seed
    first = accuracy_vs_flops(folders, None, settings).iloc[0]
    assert first[["difference", "difference_low", "difference_high", "p_value"]].isna().all()
    assert first["flops_ratio"] == 1
    nothing = accuracy_vs_flops(folders, None, {**settings, "reference": None})
    assert nothing[["difference", "p_value", "flops_ratio"]].isna().all(axis=None)
    assert not nothing["reference"].any()


def test_questions_are_matched_by_id_and_not_by_order(one_seed, write_evaluation, recipe):
    folders, settings, (_, pruned) = one_seed
    expected = accuracy_vs_flops(folders, None, settings).iloc[1]
    order = numpy.random.default_rng(5).permutation(60)
    folders["shuffled@0"] = write_evaluation("shuffled@0", pruned[order], 400, [f"q{i}" for i in order])
    settings["recipes"].append(recipe("llama+shuffled", "shuffled@0"))
    row = accuracy_vs_flops(folders, None, settings).iloc[2]
    columns = ["accuracy", "difference_low", "difference_high", "p_value"]
    assert list(row[columns]) == pytest.approx(list(expected[columns]))


def test_a_question_that_occurs_twice_is_two_questions(write_evaluation, recipe):
    ids = ["a", "a", "b"]
    folders = {
        "x@0": write_evaluation("x@0", [1, 0, 1], ids=ids),
        "y@0": write_evaluation("y@0", [0, 0, 1], ids=ids),
    }
    settings = {"reference": "l+x", "recipes": [recipe("l+x", "x@0"), recipe("l+y", "y@0")]}
    assert accuracy_vs_flops(folders, None, settings)["difference"].iloc[1] == pytest.approx(-1 / 3)


def test_several_seeds(write_evaluation, recipe):
    dense = [_answers(seed, 0.7) for seed in range(3)]
    pruned = [_answers(10 + seed, 0.5) for seed in range(3)]
    folders = {f"llama@{7 + s}+cot": write_evaluation(f"llama@{7 + s}+cot", dense[s]) for s in range(3)}
    folders |= {
        f"llama@{7 + s}+x": write_evaluation(f"llama@{7 + s}+x", pruned[s], 500 + 100 * s) for s in range(3)
    }
    nodes = list(folders)
    settings = {
        "reference": DENSE,
        "recipes": [recipe(DENSE, *nodes[:3]), recipe("llama+x", *nodes[3:], pruning="x")],
    }
    table = accuracy_vs_flops(folders, None, settings)
    assert list(table["seed"]) == ["all", "7", "8", "9"] * 2
    over, single = table.iloc[4], table.iloc[5:]
    accuracies = [answers.mean() for answers in pruned]
    assert over["accuracy"] == pytest.approx(numpy.mean(accuracies))
    assert over["deviation"] == pytest.approx(numpy.std(accuracies, ddof=1))
    assert (over["low"], over["high"]) == pytest.approx(wilson_interval(sum(map(sum, pruned)) / 3, 60))
    assert over["difference"] == pytest.approx(numpy.mean(pruned) - numpy.mean(dense))
    assert (over["difference_low"], over["difference_high"]) == pytest.approx(
        paired_bootstrap(numpy.mean(pruned, axis=0), numpy.mean(dense, axis=0)), abs=1e-9
    )
    p_values = [mcnemar_exact(a, b) for a, b in zip(pruned, dense, strict=True)]
    assert list(single["p_value"]) == pytest.approx(p_values)
    assert over["p_value"] == pytest.approx(numpy.median(p_values))
    assert list(single["flops"]) == pytest.approx([500, 600, 700])
    assert over["flops"] == pytest.approx(600)
    assert list(single["flops_ratio"]) == pytest.approx([0.5, 0.6, 0.7])
    assert list(single["accuracy"]) == pytest.approx(accuracies)
    assert table["pareto"].iloc[4:].nunique() == 1


def test_a_recipe_without_seeds_of_its_own_is_compared_with_each(write_evaluation, recipe):
    folders = {f"b@{s}": write_evaluation(f"b@{s}", _answers(s, 0.5)) for s in range(2)}
    folders["a"] = write_evaluation("a", _answers(9, 0.5))
    recipes = [recipe("l+a", "a", "a"), recipe("l+b", "b@0", "b@1")]
    table = accuracy_vs_flops(folders, None, {"reference": "l+a", "recipes": recipes})
    assert list(table["seed"]) == ["all", "all", "0", "1"]
    assert table["p_value"].iloc[1:].notna().all()


def test_latency_is_natural_at_batch_1_and_at_the_largest_batch(one_seed, tmp_path):
    folders, settings, _ = one_seed
    node = "llama@0+cot"
    rows = [
        (node, 1, "natural", 0.5),
        (node, 1, "forced", 9.0),
        (node, 8, "natural", 0.2),
        (node, 64, "natural", 0.1),
        (node, 64, "forced", 9.0),
        ("other", 1, "natural", 9.0),
    ]
    times = pandas.DataFrame(rows, columns=["node", "batch", "length", "seconds_per_answer"])
    times = times.assign(device="a GPU", dtype="float32", answers=16, repetitions=3)
    times.to_parquet(tmp_path / "latency.parquet")
    table = accuracy_vs_flops(folders, tmp_path / "latency.parquet", settings)
    assert list(table.loc[0, ["seconds_batch_1", "seconds_batched", "device"]]) == [0.5, 0.1, "a GPU"]
    assert table.loc[1, ["seconds_batch_1", "seconds_batched", "device"]].isna().all()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"correct": 3}, "correct = 3"),
        ({"n": 61}, "n = 61"),
        ({"accuracy": 0.99}, "accuracy = 0.99"),
        ({"depth": 4}, "depth = 4"),
        ({"flops": {"total": 1.0}}, "flops.total = 1.0"),
        ({"tokens": {}}, "tokens.prompt = None"),
        ({"hit_length_limit": 2}, "hit_length_limit = 2"),
    ],
)
def test_metrics_changed_by_hand_are_refused(one_seed, change, place):
    folders, settings, _ = one_seed
    path = folders["llama@0+cot"] / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CopraError, match=rf"llama@0\+cot: metrics.json says {place}"):
        accuracy_vs_flops(folders, None, settings)


def test_other_questions_are_refused(one_seed, write_evaluation, recipe):
    folders, settings, _ = one_seed
    folders["z@0"] = write_evaluation("z@0", [1, 0, 1])
    settings["recipes"].append(recipe("llama+z", "z@0"))
    with pytest.raises(CopraError, match=r"z@0 and .*llama@0\+cot: evaluated on different questions"):
        accuracy_vs_flops(folders, None, settings)


def test_what_is_missing_is_named(one_seed):
    folders, settings, _ = one_seed
    with pytest.raises(CopraError, match="'nowhere' is no recipe"):
        accuracy_vs_flops(folders, None, {**settings, "reference": "nowhere"})
    path = folders["llama@0+cot"] / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["parameters"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(CopraError, match="lacks parameters"):
        accuracy_vs_flops(folders, None, settings)
    del folders["llama@0+cot"]
    with pytest.raises(CopraError, match=r"llama@0\+cot: has no evaluation"):
        accuracy_vs_flops(folders, None, settings)


points = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=12)


@given(points)
def test_the_pareto_front_matches_brute_force(pairs):
    def beaten(accuracy, flops):
        return any((a >= accuracy and f < flops) or (a > accuracy and f <= flops) for a, f in pairs)

    expected = [not beaten(*pair) for pair in pairs]
    assert pareto_front(*zip(*pairs, strict=True)).tolist() == expected


def test_before_fine_tuning_compares_with_the_unpruned_parent(write_evaluation):
    parent, pruned = _answers(0, 0.8), _answers(1, 0.3)
    left = {"layers": 1, "kv_groups": 2, "heads": 4, "neurons": 48}
    folders = {
        "llama@0+cot": write_evaluation("llama@0+cot", parent, 1000, parameters=200),
        "llama@0+cot+layers-1": write_evaluation(
            "llama@0+cot+layers-1", pruned, 800, parameters=150, units=left, budget_missed=-0.25
        ),
    }
    row = {
        "recipe": "llama+cot+layers-1",
        "pruning": "layers-1",
        "parent_node": "llama@0+cot",
        "node": "llama@0+cot+layers-1",
    }
    table = before_fine_tuning(folders, {"rows": [row]})
    assert len(table) == 1
    values = table.iloc[0]
    assert {key: values[key] for key in row} == row
    assert values["seed"] == "0"
    assert values["parent_accuracy"] == pytest.approx(parent.mean())
    assert values["accuracy"] == pytest.approx(pruned.mean())
    assert values["difference"] == pytest.approx(pruned.mean() - parent.mean())
    assert values["p_value"] == pytest.approx(mcnemar_exact(pruned, parent))
    assert values["flops_ratio"] == pytest.approx(0.8)
    assert (values["attention_flops"], values["attention_flops_ratio"]) == (200, 0.8)
    assert {kind: values[kind] for kind in left} == left
    assert values["parameters_ratio"] == pytest.approx(0.75)
    assert values["kv_cache_bytes_per_token_ratio"] == 1
    assert for_people(table)["Removed against the budget (%)"].tolist() == ["-25.0"]
    assert "budget" not in " ".join(for_people(table.assign(budget_missed=0.05)))
