import json

import pytest

from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.scores import score_row, score_table
from copra.schema.shape import LayerShape, ModelShape
from copra.utils.errors import CopraError

FOUR = ModelShape("llama", 32, 50, 3, (LayerShape(8, 4, 4, 40),) * 4)
EIGHT = FOUR.with_layers(FOUR.layers * 2)


def layer_table(scores):
    return score_table([score_row("cosine", score, "layer", layer) for layer, score in enumerate(scores)])


def group_table(scores):
    return score_table(
        [
            score_row("gradient", score, "kv_group", layer, group)
            for layer, groups in enumerate(scores)
            for group, score in enumerate(groups)
        ]
    )


def block_table(distance, layers, metric="angular"):
    return score_table(
        [
            score_row(metric, distance(start, length), "block", start, length=length)
            for length in range(1, layers + 1)
            for start in range(layers + 1 - length)
        ]
    )


def groups_of(plan):
    """The KV groups that stay in each layer."""
    shape, cut = ModelShape.from_json(plan["shape_before"]), KeptUnits.from_json(plan["kept"])
    return [list(cut.kv_groups_of(shape, layer)) for layer in range(len(shape.layers))]


GROUPS = group_table([[1, 5, 2, 9], [8, 3, 7, 4], [0.1, 0.2, 0.3, 0.4], [6, 6, 6, 6]])


def test_the_plan_is_a_record_that_json_carries(plan_for, count_weights):
    plan = plan_for(
        EIGHT, layer_table([5, 1, 4, 2, 7, 3, 6, 8]), unit="layers", metric="cosine", budget={"count": 2}
    )
    assert json.loads(json.dumps(plan)) == plan
    one = count_weights(FOUR) / 4
    assert plan == {
        "units": ["layers"],
        "metric": "cosine",
        "scope": "uniform",
        "normalize": False,
        "budget": {"count": 2},
        "budget_missed": 0,
        "warning": None,
        "removed": [
            {"unit": "layers", "layer": 1, "count": 1, "indices": [1], "score": 1.0},
            {"unit": "layers", "layer": 3, "count": 1, "indices": [3], "score": 2.0},
        ],
        "kept": {"layers": [0, 2, 4, 5, 6, 7], "heads": [None] * 8, "neurons": [None] * 8},
        "shape_before": EIGHT.to_json(),
        "shape_after": EIGHT.with_layers(EIGHT.layers[:6]).to_json(),
        "counts": {
            "layers": {"before": 8, "after": 6},
            "kv_groups": {"before": 32, "after": 24},
            "heads": {"before": 64, "after": 48},
            "neurons": {"before": 320, "after": 240},
        },
        "flops": {"dense": 8 * one, "before": 8 * one, "after": 6 * one, "ratio": 0.75},
        "parameters": {"dense": 8 * 6912, "before": 8 * 6912, "after": 6 * 6912, "ratio": 0.75},
    }


def test_protected_layers_stay_and_ties_go_to_the_lower_layer(plan_for):
    plan = plan_for(
        EIGHT, layer_table([0] * 8), unit="layers", metric="cosine", budget={"count": 3}, protect=[0, 2]
    )
    assert plan["kept"]["layers"] == [0, 2, 5, 6, 7]


def test_one_layer_stays(plan_for):
    settings = {"unit": "layers", "metric": "cosine"}
    plan = plan_for(FOUR, layer_table([3, 2, 9, 1]), **settings, budget={"count": 3})
    assert plan["kept"]["layers"] == [2]
    with pytest.raises(CopraError, match="the largest is 3"):
        plan_for(FOUR, layer_table([3, 2, 9, 1]), **settings, budget={"count": 4})


@pytest.mark.parametrize("protect", [[], [0], [3], [0, 4]])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("metric", ["angular", "angular_mean"])
def test_angular_removes_the_nearest_pair_of_states(plan_for, metric, length, protect):
    def distance(start, length):
        return ((start * 7 + length * 3) % 11) / 11

    plan = plan_for(
        EIGHT,
        block_table(distance, 8, metric),
        unit="layers",
        metric=metric,
        budget={"count": length},
        protect=protect,
    )
    gone = [unit["layer"] for unit in plan["removed"]]
    assert gone == list(range(gone[0], gone[0] + length))
    assert not set(gone) & set(protect)
    starts = [s for s in range(9 - length) if not set(range(s, s + length)) & set(protect)]
    assert distance(gone[0], length) == min(distance(start, length) for start in starts)
    assert {unit["score"] for unit in plan["removed"]} == {distance(gone[0], length)}


def test_angular_names_the_longest_block_between_protected_layers(plan_for):
    with pytest.raises(CopraError, match="the largest is 3"):
        plan_for(
            EIGHT,
            block_table(lambda start, length: 0.5, 8),
            unit="layers",
            metric="angular",
            budget={"count": 4},
            protect=[0, 4],
        )


def test_deepest_keeps_the_last_layer(plan_for):
    plan = plan_for(EIGHT, unit="layers", metric="deepest", budget={"fraction": 0.375})
    assert plan["kept"]["layers"] == [0, 1, 2, 3, 7]


def test_random_depends_on_the_seed_alone(plan_for):
    def kept(seed, **settings):
        return plan_for(EIGHT, seed=seed, metric="random", **settings)["kept"]

    layers = {"unit": "layers", "budget": {"count": 4}}
    groups = {"unit": "kv_groups", "budget": {"count": 8}}
    assert kept(1, **layers) == kept(1, **layers)
    assert len({str(kept(seed, **layers)) for seed in range(10)}) > 5
    assert len({str(kept(seed, **groups)) for seed in range(10)}) > 5
    with pytest.raises(CopraError, match="seed"):
        kept(None, **layers)


def test_uniform_takes_the_lowest_groups_of_every_layer(plan_for):
    plan = plan_for(FOUR, GROUPS, unit="kv_groups", metric="gradient", budget={"count": 8})
    assert groups_of(plan) == [[1, 3], [0, 2], [2, 3], [2, 3]]
    assert plan["shape_after"] == FOUR.with_layers((LayerShape(4, 2, 4, 40),) * 4).to_json()
    assert plan["counts"]["kv_groups"] == {"before": 16, "after": 8}
    assert plan["counts"]["heads"] == {"before": 32, "after": 16}
    assert [(one["layer"], one["indices"], one["score"]) for one in plan["removed"]] == [
        (0, [0, 2], 3),
        (1, [1, 3], 7),
        (2, [0, 1], pytest.approx(0.3)),
        (3, [0, 1], 12),
    ]


def test_uniform_counts_are_multiples_of_the_free_layers(plan_for):
    settings = {"unit": "kv_groups", "metric": "gradient"}
    with pytest.raises(CopraError, match=r"counts are 4 and 8, the largest is 12"):
        plan_for(FOUR, GROUPS, **settings, budget={"count": 6})
    plan = plan_for(FOUR, GROUPS, **settings, budget={"count": 6}, protect=[1])
    assert groups_of(plan) == [[1, 3], [0, 1, 2, 3], [2, 3], [2, 3]]
    with pytest.raises(CopraError, match="At most 12 can"):
        plan_for(FOUR, GROUPS, **settings, budget={"fraction": 0.9})
    with pytest.raises(CopraError, match="none of the 16 KV groups"):
        plan_for(FOUR, GROUPS, **settings, budget={"fraction": 0.5}, protect=[0, 1, 2, 3])


def test_global_takes_the_lowest_groups_and_leaves_one_in_each_layer(plan_for):
    settings = {"unit": "kv_groups", "metric": "gradient", "scope": "global"}
    plan = plan_for(FOUR, GROUPS, **settings, budget={"count": 6})
    assert groups_of(plan) == [[1, 3], [0, 2, 3], [3], [0, 1, 2, 3]]
    most = plan_for(FOUR, GROUPS, **settings, budget={"count": 12})
    assert groups_of(most) == [[3], [0], [3], [3]]
    with pytest.raises(CopraError, match="the largest is 12"):
        plan_for(FOUR, GROUPS, **settings, budget={"count": 13})


@pytest.mark.parametrize("target", [0.9, 0.83, 0.777, 0.7, 0.66])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_flops_budget_takes_the_nearest_of_all_legal_plans(plan_for, count_weights, target, scope):
    settings = {"unit": "kv_groups", "metric": "gradient", "scope": scope}
    reachable = {}
    for count in range(4 if scope == "uniform" else 1, 13, 4 if scope == "uniform" else 1):
        other = plan_for(FOUR, GROUPS, **settings, budget={"count": count})
        after = ModelShape.from_json(other["shape_after"])
        assert other["flops"]["ratio"] == count_weights(after) / count_weights(FOUR)
        reachable[count] = other["flops"]["ratio"]
    if 1 - target < min(abs(ratio - target) for ratio in reachable.values()):
        with pytest.raises(CopraError, match="removing nothing"):
            plan_for(FOUR, GROUPS, **settings, budget={"flops": target})
        return
    plan = plan_for(FOUR, GROUPS, **settings, budget={"flops": target})
    ratio = plan["flops"]["ratio"]
    assert abs(ratio - target) == min(abs(ratio - target) for ratio in reachable.values())
    assert plan["budget_missed"] == pytest.approx((1 - ratio) / (1 - target) - 1)
    assert (plan["warning"] is None) == (abs(plan["budget_missed"]) <= 0.05)


def test_flops_count_from_the_dense_model(plan_for):
    smaller = EIGHT.with_layers(EIGHT.layers[:6])
    table = layer_table(range(6))
    settings = {"unit": "layers", "metric": "cosine"}
    plan = plan_for(smaller, table, dense=EIGHT, **settings, budget={"flops": 0.5})
    assert plan["counts"]["layers"] == {"before": 6, "after": 4}
    assert plan["flops"]["before"] / plan["flops"]["dense"] == 0.75
    with pytest.raises(CopraError, match=r"has 0\.7500"):
        plan_for(smaller, table, dense=EIGHT, **settings, budget={"flops": 0.8})
    with pytest.raises(CopraError, match=r"with 5 removed 0\.1250 are left"):
        plan_for(smaller, table, dense=EIGHT, **settings, budget={"flops": 0.05})


def test_layers_of_different_cost_are_counted_as_they_are(plan_for, count_weights):
    layers = tuple(LayerShape(8, 4, 4, ffn) for ffn in (400, 10, 400, 10))
    shape = FOUR.with_layers(layers)
    plan = plan_for(shape, layer_table([4, 1, 3, 2]), unit="layers", metric="cosine", budget={"flops": 0.9})
    after = [
        ModelShape("llama", 32, 50, 3, tuple(layers[i] for i in keep))
        for keep in ([0, 1, 2, 3], [0, 2, 3], [0, 2])
    ]
    ratios = [count_weights(one) / count_weights(shape) for one in after]
    best = min(range(3), key=lambda i: abs(ratios[i] - 0.9))
    assert (4 - plan["counts"]["layers"]["after"], plan["flops"]["ratio"]) == (best, ratios[best])


def test_a_protected_layer_has_to_exist(plan_for):
    with pytest.raises(CopraError, match="no layer 4; the model has 4 layers"):
        plan_for(FOUR, unit="layers", metric="deepest", budget={"count": 1}, protect=[4])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "needs a table"),
        (layer_table([1, 2, 3]), r"\(layer 3, 3\) is scored but not in the model, or the other way round"),
        (layer_table([1, 2, 3, 4, 5]), r"\(layer 4, 4\)"),
        (layer_table([1, 2, float("nan"), 4]), r"\(layer 2, 2\) has no finite score"),
        (GROUPS, r"\(layer 0, 0\)"),
    ],
)
def test_scores_have_to_be_of_this_model(plan_for, table, message):
    with pytest.raises(CopraError, match=message):
        plan_for(FOUR, table, unit="layers", metric="cosine", budget={"count": 1})


def test_plans_do_not_depend_on_the_order_of_the_table(plan_for):
    settings = {"unit": "kv_groups", "metric": "gradient", "scope": "global", "budget": {"count": 7}}
    table = group_table([[1, 1, 2, 2]] * 4)
    shuffled = table.sample(frac=1, random_state=0)
    assert plan_for(FOUR, table, **settings) == plan_for(FOUR, shuffled, **settings)
    removed = [(one["layer"], one["count"]) for one in plan_for(FOUR, table, **settings)["removed"]]
    assert removed == [(0, 2), (1, 2), (2, 2), (3, 1)]
