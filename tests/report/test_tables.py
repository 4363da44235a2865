import json
import math

import numpy
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copra.evaluation.statistics import (
    holm,
    mcnemar_exact,
    paired_bootstrap,
    recipe_difference,
    sign_flip_exact,
    wilson_interval,
)
from copra.report.comparisons import share_seeds
from copra.report.formats import for_people
from copra.report.tables import accuracy_vs_flops, before_fine_tuning, pareto_front
from copra.utils.errors import CopraError

DENSE, PRUNED = "llama+cot", "llama+cot+drop-1+coconut"


def _answers(seed, share, n=60):
    return numpy.random.default_rng(seed).random(n) < share


@pytest.fixture
def one_seed(write_evaluation, recipe):
    right = {"llama@0+cot": _answers(0, 0.8), "llama@0+cot+drop-1+coconut": _answers(1, 0.6)}
    folders = {
        node: write_evaluation(node, answers, flops)
        for (node, answers), flops in zip(right.items(), (1000, 400), strict=True)
    }
    settings = {
        "reference": DENSE,
        "recipes": [
            recipe(DENSE, "llama@0+cot"),
            recipe(PRUNED, "llama@0+cot+drop-1+coconut", pruning="drop-1", method="coconut"),
        ],
    }
    return folders, settings, list(right.values())


@pytest.mark.slow
def test_one_row_a_recipe_with_its_statistics(one_seed):
    folders, settings, (dense, pruned) = one_seed
    table = accuracy_vs_flops(folders, None, settings)
    assert list(table["recipe"]) == [DENSE, PRUNED]
    assert list(table["seed"]) == ["all", "all"]
    assert list(table["reference"]) == [True, False]
    row = table.iloc[1]
    assert (row["base"], row["pruning"], row["method"]) == ("llama", "drop-1", "coconut")
    assert row["order"] == "cot > drop-1 > coconut"
    assert row["n"] == 60
    assert row["accuracy"] == pytest.approx(pruned.mean())
    assert (row["low"], row["high"]) == pytest.approx(wilson_interval(pruned.sum(), 60))
    assert row["difference"] == pytest.approx(pruned.mean() - dense.mean())
    assert (row["checkpoints_low"], row["checkpoints_high"]) == pytest.approx(paired_bootstrap(pruned, dense))
    assert row["checkpoints_p"] == row["checkpoints_p_holm"] == pytest.approx(mcnemar_exact(pruned, dense))
    assert row[["recipe_low", "recipe_high", "recipe_p", "recipe_p_holm"]].isna().all()
    assert math.isnan(row["deviation"])
    assert row["flops"] == pytest.approx(400)
    assert row["flops_ratio"] == pytest.approx(0.4)
    assert row["latent_flops"] == row["attention_flops"] == row["ffn_flops"] == row["head_flops"] == 100
    assert row["generated_tokens"] == 1 + row["latents"] == pytest.approx(2.0)
    # 100 FLOPs of decoding, and one token on the mean that was fed back.
    assert (row["flops_per_token"], row["length_limit"]) == (pytest.approx(100), 0)
    assert (row["depth"], row["parameters"], row["checkpoint_bytes"]) == (5, 100, 400)
    assert (row["kv_cache_bytes_per_token"], row["training_flops"]) == (64, 7e12)
    assert list(row[["layers", "kv_groups", "heads", "neurons"]]) == [2, 4, 8, 96]
    assert math.isnan(row["seconds_batch_1"])
    assert math.isnan(row["seconds_batched"])
    assert list(table["pareto"]) == [True, True]


@pytest.mark.slow
def test_the_table_says_how_answers_were_found_and_how_long_they_may_be(write_evaluation, recipe):
    folders = {
        "hub+cot@0": write_evaluation("hub+cot@0", _answers(0, 0.8)),
        "hub+ask": write_evaluation(
            "hub+ask", _answers(1, 0.5), answer_rule="harness-strict", max_new_tokens=512
        ),
    }
    settings = {"recipes": [recipe("hub+cot", "hub+cot@0"), recipe("hub+ask", "hub+ask")]}
    table = accuracy_vs_flops(folders, None, settings)
    assert list(table["answer_rule"]) == ["marker", "harness-strict"]
    assert list(table["max_new_tokens"]) == [256, 512]
    shown = for_people(table)
    assert list(shown["Answer rule"]) == ["marker", "harness-strict"]
    assert list(shown["Longest answer"]) == ["256", "512"]
    assert "Answer rule" not in for_people(table[:1])


@pytest.mark.slow
def test_the_reference_is_compared_with_nothing(one_seed):
    folders, settings, _ = one_seed
    first = accuracy_vs_flops(folders, None, settings).iloc[0]
    assert first[["difference", "checkpoints_low", "checkpoints_p", "recipe_high"]].isna().all()
    assert first["flops_ratio"] == 1
    nothing = accuracy_vs_flops(folders, None, {**settings, "reference": None})
    assert nothing[["difference", "checkpoints_p", "recipe_p", "flops_ratio"]].isna().all(axis=None)
    assert not nothing["reference"].any()


@pytest.mark.slow
def test_questions_are_matched_by_id_and_not_by_order(one_seed, write_evaluation, recipe):
    folders, settings, (_, pruned) = one_seed
    expected = accuracy_vs_flops(folders, None, settings).iloc[1]
    order = numpy.random.default_rng(5).permutation(60)
    folders["shuffled@0"] = write_evaluation("shuffled@0", pruned[order], 400, [f"q{i}" for i in order])
    settings["recipes"].append(recipe("llama+shuffled", "shuffled@0"))
    row = accuracy_vs_flops(folders, None, settings).iloc[2]
    columns = ["accuracy", "checkpoints_low", "checkpoints_high", "checkpoints_p"]
    assert list(row[columns]) == pytest.approx(list(expected[columns]))


@pytest.mark.slow
def test_a_question_that_occurs_twice_is_two_questions(write_evaluation, recipe):
    ids = ["a", "a", "b"]
    folders = {
        "x@0": write_evaluation("x@0", [1, 0, 1], ids=ids),
        "y@0": write_evaluation("y@0", [0, 0, 1], ids=ids),
    }
    settings = {"reference": "l+x", "recipes": [recipe("l+x", "x@0"), recipe("l+y", "y@0")]}
    assert accuracy_vs_flops(folders, None, settings)["difference"].iloc[1] == pytest.approx(-1 / 3)


@pytest.mark.slow
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
    assert (over["checkpoints_low"], over["checkpoints_high"]) == pytest.approx(
        paired_bootstrap(numpy.mean(pruned, axis=0), numpy.mean(dense, axis=0)), abs=1e-9
    )
    p_values = [mcnemar_exact(a, b) for a, b in zip(pruned, dense, strict=True)]
    assert list(single["checkpoints_p"]) == pytest.approx(p_values)
    assert over["checkpoints_p"] == pytest.approx(sign_flip_exact(pruned, dense))
    # Both models of a seed descend from one base that was drawn with it.
    found = list(over[["recipe_low", "recipe_high", "recipe_p"]])
    assert found == pytest.approx(recipe_difference(pruned, dense, paired=True))
    assert found != pytest.approx(recipe_difference(pruned, dense, paired=False))
    assert single[["recipe_low", "recipe_p", "checkpoints_p_holm", "recipe_p_holm"]].isna().all(axis=None)
    assert list(single["flops"]) == pytest.approx([500, 600, 700])
    assert over["flops"] == pytest.approx(600)
    assert list(single["flops_ratio"]) == pytest.approx([0.5, 0.6, 0.7])
    assert list(single["accuracy"]) == pytest.approx(accuracies)
    assert table["pareto"].iloc[4:].nunique() == 1


@pytest.mark.slow
def test_a_recipe_without_seeds_of_its_own_is_compared_with_each(write_evaluation, recipe):
    answers = {f"b+x@{s}": _answers(s, 0.5) for s in range(2)} | {
        "a": _answers(9, 0.5),
        "c": _answers(8, 0.5),
    }
    folders = {node: write_evaluation(node, right) for node, right in answers.items()}
    recipes = [recipe("l+a", "a", "a"), recipe("l+b", "b+x@0", "b+x@1"), recipe("l+c", "c")]
    table = accuracy_vs_flops(folders, None, {"reference": "l+a", "recipes": recipes})
    assert list(table["seed"]) == ["all", "all", "0", "1", "all"]
    assert table["checkpoints_p"].iloc[1:].notna().all()
    # Every other training would give the same reference.
    b = [answers["b+x@0"], answers["b+x@1"]]
    expected = recipe_difference(b, [answers["a"]], paired=False, fixed_b=True)
    assert list(table.loc[1, ["recipe_low", "recipe_high", "recipe_p"]]) == pytest.approx(expected)
    # Where nothing is drawn at all, the recipe is its checkpoint.
    for name in ("low", "high", "p"):
        assert table.loc[4, f"recipe_{name}"] == table.loc[4, f"checkpoints_{name}"]


@pytest.mark.parametrize(
    ("nodes", "others", "shared"),
    [
        (["l@0+cot+x", "l@1+cot+x"], ["l@0+cot", "l@1+cot"], True),
        (["l@0+x", "l@1+x"], ["l@0+cot", "l@1+cot"], True),
        (["l+cot@0+x", "l+cot@1+x"], ["l+cot@0+y", "l+cot@1+y"], True),
        # The pretrained base alone, which is the same for all seeds.
        (["l+x@0", "l+x@1"], ["l+cot@0", "l+cot@1"], False),
        (["l+cot+x@0", "l+cot+x@1"], ["l+cot+y@0", "l+cot+y@1"], False),
        (["l@0+x", "l@1+x"], ["m@0+x", "m@1+x"], False),
        (["l@1+x", "l@0+x"], ["l@0+y", "l@1+y"], False),
        (["l@0+x", "l@1+x"], ["l@0+y"], False),
    ],
)
def test_seeds_are_pairs_where_their_models_descend_from_one_draw(nodes, others, shared):
    assert share_seeds(nodes, others) == shared


@pytest.mark.slow
def test_one_seed_is_said_to_be_no_answer(one_seed):
    folders, settings, _ = one_seed
    view = for_people(accuracy_vs_flops(folders, None, settings))
    assert list(view["Difference, this recipe (points)"]) == ["-", "one seed"]
    assert "p, this recipe" not in view
    assert view["Difference, these checkpoints (points)"][1].startswith("-")
    assert view["p, these checkpoints"][1] != "-"


@pytest.mark.slow
def test_a_single_seeds_row_is_not_asked_for_its_recipe(write_evaluation, recipe):
    folders = {f"{n}@{s}": write_evaluation(f"{n}@{s}", _answers(s, 0.5)) for n in "ab" for s in range(2)}
    recipes = [recipe("l+a", "a@0", "a@1"), recipe("l+b", "b@0", "b@1")]
    view = for_people(accuracy_vs_flops(folders, None, {"reference": "l+a", "recipes": recipes}))
    cells = list(view["Difference, this recipe (points)"])
    assert cells[:3] == ["-"] * 3
    assert cells[3].startswith("+0.0 [")
    assert cells[4:] == ["-", "-"]


@pytest.mark.slow
def test_all_comparisons_but_the_primary_one_are_corrected_for_their_number(write_evaluation, recipe):
    names = ["l+a", "l+b", "l+c", "l+d"]
    folders, recipes = {}, []
    for index, name in enumerate(names):
        nodes = [f"{name.replace('l', f'l@{s}')}" for s in range(3)]
        for s, node in enumerate(nodes):
            folders[node] = write_evaluation(node, _answers(10 * index + s, 0.7 - 0.1 * index))
        recipes.append(recipe(name, *nodes))
    settings = {"reference": "l+a", "recipes": recipes}
    table = accuracy_vs_flops(folders, None, settings)
    over = table[table["seed"] == "all"].iloc[1:]
    for question in ("checkpoints", "recipe"):
        raw, adjusted = list(over[f"{question}_p"]), list(over[f"{question}_p_holm"])
        assert adjusted == pytest.approx(holm(raw))
        assert adjusted != pytest.approx(raw)
    assert not table["primary"].any()
    assert table[table["seed"] != "all"]["recipe_p_holm"].isna().all()
    chosen = accuracy_vs_flops(folders, None, {**settings, "primary": "l+c"})
    over = chosen[chosen["seed"] == "all"].iloc[1:]
    assert list(over["primary"]) == [False, True, False]
    for question in ("checkpoints", "recipe"):
        raw, adjusted = list(over[f"{question}_p"]), list(over[f"{question}_p_holm"])
        assert adjusted[1] == raw[1]
        assert [adjusted[0], adjusted[2]] == pytest.approx(holm([raw[0], raw[2]]))
    assert list(for_people(chosen)["Primary"]).count("yes") == 1


@pytest.mark.slow
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
    times = times.assign(device="a GPU", dtype="float32", answers=16, repetitions=3, prompt="whole")
    times.to_parquet(tmp_path / "latency.parquet")
    table = accuracy_vs_flops(folders, tmp_path / "latency.parquet", settings)
    columns = ["seconds_batch_1", "seconds_batched", "device"]
    cached = ["cached_prompt_seconds_batch_1", "cached_prompt_seconds_batched"]
    assert list(table.loc[0, [*columns, *cached]]) == [0.5, 0.1, "a GPU", 0.5, 0.1]
    assert table.loc[1, [*columns, *cached]].isna().all()


@pytest.mark.slow
def test_times_stand_beside_flops_of_their_kind(write_evaluation, recipe, tmp_path):
    """With the worked examples read anew for each answer, or read before."""
    folders = {node: write_evaluation(node, [1, 0], 4000) for node in ("a", "b")}
    times = pandas.DataFrame(
        [("a", "whole", 0.8), ("a", "cached", 0.2), ("b", "whole", 0.3)],
        columns=["node", "prompt", "seconds_per_answer"],
    ).assign(batch=1, length="natural", device="a CPU")
    times.to_parquet(tmp_path / "latency.parquet")
    settings = {"recipes": [recipe("l+a", "a"), recipe("l+b", "b")]}
    table = accuracy_vs_flops(folders, tmp_path / "latency.parquet", settings)
    assert list(table["flops"]) == [4000, 4000]
    assert list(table["cached_prompt_flops"]) == [1000, 1000]
    assert list(table["seconds_batch_1"]) == [0.8, 0.3]
    assert list(table["cached_prompt_seconds_batch_1"]) == [0.2, 0.3]
    view = for_people(table)
    assert list(view["FLOPs per answer (k)"]) == ["4.00", "4.00"]
    assert list(view["FLOPs per answer, prompt cached (k)"]) == ["1.00", "1.00"]
    assert list(view["Latency, batch 1, prompt cached (ms)"]) == ["200", "300"]
    alike = for_people(
        table.assign(
            cached_prompt_flops=table["flops"], cached_prompt_seconds_batch_1=table["seconds_batch_1"]
        )
    )
    assert not [heading for heading in alike if "cached" in heading]


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


@pytest.mark.slow
def test_before_fine_tuning_compares_with_the_unpruned_parent(write_evaluation):
    parent, pruned = _answers(0, 0.8), _answers(1, 0.3)
    left = {"layers": 1, "kv_groups": 2, "heads": 4, "neurons": 48}
    folders = {
        "llama@0+cot": write_evaluation("llama@0+cot", parent, 1000, parameters=200),
        "llama@0+cot+drop-1": write_evaluation(
            "llama@0+cot+drop-1", pruned, 800, parameters=150, units=left, budget_missed=-0.25
        ),
    }
    row = {
        "recipe": "llama+cot+drop-1",
        "pruning": "drop-1",
        "parent_node": "llama@0+cot",
        "node": "llama@0+cot+drop-1",
    }
    table = before_fine_tuning(folders, {"pruned": [row]})
    assert len(table) == 1
    values = table.iloc[0]
    assert {key: values[key] for key in row} == row
    assert values["seed"] == "all"
    assert values["parent_accuracy"] == pytest.approx(parent.mean())
    assert values["accuracy"] == pytest.approx(pruned.mean())
    assert values["difference"] == pytest.approx(pruned.mean() - parent.mean())
    assert values["checkpoints_p"] == pytest.approx(mcnemar_exact(pruned, parent))
    assert math.isnan(values["recipe_p"])
    assert values["flops_ratio"] == pytest.approx(0.8)
    assert (values["attention_flops"], values["attention_flops_ratio"]) == (200, 0.8)
    assert {kind: values[kind] for kind in left} == left
    assert values["parameters_ratio"] == pytest.approx(0.75)
    assert values["kv_cache_bytes_per_token_ratio"] == 1
    assert for_people(table)["Removed against the budget (%)"].tolist() == ["-25.0"]
    assert "budget" not in " ".join(for_people(table.assign(budget_missed=0.05)))


@pytest.mark.slow
def test_surgery_is_told_from_rambling(write_evaluation):
    """A pruned model that never stops costs more per answer, and less per token."""
    folders = {
        "l@0+cot": write_evaluation("l@0+cot", _answers(0, 0.8), 1000, cut_off=3),
        "l@0+cot+p": write_evaluation("l@0+cot+p", _answers(1, 0.1), 4000, cut_off=45),
    }
    path = folders["l@0+cot+p"] / "predictions.parquet"
    rambling = pandas.read_parquet(path)
    tokens = rambling["n_generated"] + 9
    metrics = json.loads((path.parent / "metrics.json").read_text())
    metrics["tokens"]["generated"] = float(tokens.mean())
    rambling.assign(n_generated=tokens).to_parquet(path)
    (path.parent / "metrics.json").write_text(json.dumps(metrics))
    row = {"recipe": "l+cot+p", "pruning": "p", "parent_node": "l@0+cot", "node": "l@0+cot+p"}
    table = before_fine_tuning(folders, {"pruned": [row]})
    values = table.iloc[0]
    assert values["flops_ratio"] == 4
    # 250 FLOPs of decoding on 1 token that is fed back, and 1000 on 10.
    assert (values["flops_per_token"], values["flops_per_token_ratio"]) == (pytest.approx(100), 0.4)
    assert (values["parent_length_limit"], values["length_limit"]) == (0.05, 0.75)
    view = for_people(table)
    assert list(view["Cut off at the limit (%)"]) == ["75.0"]
    assert list(view["FLOPs per token ratio"]) == ["0.400"]


@pytest.mark.slow
def test_before_fine_tuning_over_seeds(write_evaluation):
    """Each pruned model descends from its parent, so seeds are pairs; pruning without seeds has one row."""
    parents = [_answers(s, 0.8) for s in range(3)]
    pruned = [right & _answers(10 + s, 0.8) for s, right in enumerate(parents)]
    folders, rows = {}, []
    for s in range(3):
        names = f"l@{s}+cot", f"l@{s}+cot+p"
        for node, answers in zip(names, (parents[s], pruned[s]), strict=True):
            folders[node] = write_evaluation(node, answers, 1000 + 100 * s)
        rows.append({"recipe": "l+cot+p", "pruning": "p", "parent_node": names[0], "node": names[1]})
    table = before_fine_tuning(folders, {"pruned": rows})
    assert list(table["seed"]) == ["all", "0", "1", "2"]
    assert list(table["node"]) == ["l+cot+p", *(row["node"] for row in rows)]
    assert list(table["parent_node"]) == ["l+cot", *(row["parent_node"] for row in rows)]
    over = table.iloc[0]
    assert over["difference"] == pytest.approx(numpy.mean(pruned) - numpy.mean(parents))
    assert over["parent_accuracy"] == pytest.approx(numpy.mean(parents))
    expected = recipe_difference(pruned, parents, paired=True)
    assert list(over[["recipe_low", "recipe_high", "recipe_p"]]) == pytest.approx(expected)
    assert over["flops"] == pytest.approx(1100)
    assert list(table["flops_ratio"]) == [1.0] * 4
    assert list(table["checkpoints_p"].iloc[1:]) == pytest.approx(
        [mcnemar_exact(a, b) for a, b in zip(pruned, parents, strict=True)]
    )
    assert table["recipe_p"].iloc[1:].isna().all()
