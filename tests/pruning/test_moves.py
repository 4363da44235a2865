"""Plans of heads, neurons and several kinds together, against rules written out plainly."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copra.cost.flops import FlopCounter
from copra.pruning.cut import KeptUnits
from copra.pruning.moves import removal_sequence, shapes_along
from copra.pruning.plan import make_plan
from copra.pruning.scoring.scores import score_row, score_table
from copra.schema.pruning import Prune
from copra.schema.shape import LayerShape, ModelShape
from copra.utils.errors import CopraError

SHAPE = ModelShape(
    "llama", 32, 50, 3, (LayerShape(8, 4, 4, 40), LayerShape(6, 2, 4, 24), LayerShape(4, 4, 4, 16))
)
NAMES = {"kv_groups": "kv_group", "heads": "head", "neurons": "neuron", "layers": "layer"}
SIZES = {"kv_groups": "kv_heads", "heads": "query_heads", "neurons": "ffn"}


def flops_of(shape):
    return FlopCounter(shape).of_answer(None, 30, 10).total


def units(kind, shape=SHAPE):
    if kind == "layers":
        return [(layer, layer) for layer in range(len(shape.layers))]
    return [(n, i) for n, sizes in enumerate(shape.layers) for i in range(getattr(sizes, SIZES[kind]))]


def table(seed, *kinds, metric="gradient", shape=SHAPE):
    """Random scores of all units of these kinds; returns also the scores by kind."""
    draw = random.Random(seed)
    scores = {kind: {unit: draw.random() for unit in units(kind, shape)} for kind in kinds}
    rows = [
        score_row(metric, score, NAMES[kind], layer, index)
        for kind in kinds
        for (layer, index), score in scores[kind].items()
    ]
    return score_table(rows), scores


def plan(scores, shape=SHAPE, seed=0, **changes):
    prune = Prune(kind="prune", **{"metric": "gradient", **changes})
    return make_plan(prune, shape, shape, scores, flops_of, seed)


def test_heads_go_one_from_every_group_lowest_first():
    scores, by = table(1, "heads")
    kept = plan(scores, unit="heads", scope="global", budget={"count": 8})["kept"]["heads"]
    # By hand: layer 0 has one move of 4 heads, layer 1 two moves of 2, layer 2 (one head a group) none.
    lowest = {
        0: [[min((2 * g, 2 * g + 1), key=lambda h: by["heads"][0, h]) for g in range(4)]],
        1: [
            [sorted(range(3 * g, 3 * g + 3), key=lambda h: by["heads"][1, h])[k] for g in range(2)]
            for k in range(2)
        ],
    }
    everything = [head for moves in lowest.values() for move in moves for head in move]
    assert len(everything) == 8
    assert kept == [
        sorted(set(range(8)) - set(lowest[0][0])),
        sorted(set(range(6)) - set(lowest[1][0]) - set(lowest[1][1])),
        None,
    ]


def test_uniform_heads_stop_where_a_layer_has_no_more():
    scores, _ = table(1, "heads")
    with pytest.raises(CopraError, match="none of the 18 query heads"):
        plan(scores, unit="heads", budget={"count": 2})
    made = plan(scores, unit="heads", budget={"count": 6}, protect=[2])
    assert [len(heads) for heads in made["kept"]["heads"][:2]] == [4, 4]


def test_neurons_leave_widths_of_whole_multiples():
    scores, by = table(2, "neurons")
    # 40, 24 and 16 neurons with multiples of 16: 40 -> 32 -> 16, 24 -> 16, 16 stays.
    made = plan(scores, unit="neurons", scope="global", multiple_of=16, budget={"count": 32})
    kept = made["kept"]["neurons"]
    assert [len(each) for each in kept[:2]] == [16, 16]
    assert kept[2] is None
    for layer in (0, 1):
        ordered = sorted(range(SHAPE.layers[layer].ffn), key=lambda i: by["neurons"][layer, i])
        assert kept[layer] == sorted(ordered[-16:])
    assert made["counts"]["neurons"] == {"before": 80, "after": 48}
    with pytest.raises(
        CopraError, match=r"18 of the 80 neurons cannot be removed; the nearest legal counts are 16 and "
    ):
        plan(scores, unit="neurons", scope="global", multiple_of=16, budget={"count": 18})
    with pytest.raises(CopraError, match="smaller multiple_of"):
        plan(scores, unit="neurons", multiple_of=64, budget={"fraction": 0.5})


def test_uniform_neurons_take_as_many_chunks_from_every_layer():
    shape = SHAPE.with_layers((LayerShape(4, 2, 4, 32),) * 3)
    scores, _ = table(3, "neurons", shape=shape)
    made = plan(scores, shape, unit="neurons", multiple_of=8, budget={"fraction": 0.5})
    assert [len(each) for each in made["kept"]["neurons"]] == [16] * 3


def test_scores_can_be_normalized_in_each_layer():
    rows = [
        score_row("gradient", score, "kv_group", layer, index)
        for layer, scores in enumerate(([10, 20, 30, 40], [1, 2], [0.1, 0.1, 0.1, 0.1]))
        for index, score in enumerate(scores)
    ]
    scores = score_table(rows)
    kept = {
        normalize: plan(scores, unit="kv_groups", scope="global", budget={"count": 1}, normalize=normalize)[
            "removed"
        ]
        for normalize in (False, True)
    }
    assert (kept[False][0]["layer"], kept[False][0]["indices"]) == (2, [0])
    # 10 / sqrt(3000) = 0.18 is less than 0.1 / sqrt(0.04) = 0.5 and 1 / sqrt(5) = 0.45.
    assert (kept[True][0]["layer"], kept[True][0]["indices"]) == (0, [0])
    assert kept[True][0]["score"] == pytest.approx(10 / 3000**0.5)


@pytest.mark.parametrize("metric", ["activation", "contribution"])
def test_scores_that_grow_with_the_residual_stream_are_normalized_where_layers_compete(metric):
    """Scores ten times as large in each layer as in the one before, as the norms of real models grow."""
    rows = [
        score_row(metric, (1 + index) * 10**layer, "kv_group", layer, index)
        for layer in range(3)
        for index in range(SHAPE.layers[layer].kv_heads)
    ]
    settings = {"unit": "kv_groups", "metric": metric, "scope": "global", "budget": {"count": 4}}

    def removed(**changes):
        made = plan(score_table(rows), **settings, **changes)
        return made["normalize"], [(one["layer"], one["count"]) for one in made["removed"]]

    # By hand: n / sqrt(30), n / sqrt(5) and n / sqrt(30) for n = 1, 2, ...
    assert removed() == removed(normalize=True) == (True, [(0, 2), (2, 2)])
    assert removed(normalize=False) == (False, [(0, 3), (1, 1)])


@pytest.mark.parametrize("abs_over", ["token", "example", "batch"])
def test_the_gradient_metric_of_the_step_is_looked_up(abs_over):
    name = "gradient" if abs_over == "example" else f"gradient_{abs_over}"
    scores, by = table(4, "kv_groups", metric=name)
    made = plan(scores, unit="kv_groups", scope="global", abs_over=abs_over, budget={"count": 1})
    free = by["kv_groups"]
    layer, index = min(free, key=free.get)
    assert [(one["layer"], one["indices"]) for one in made["removed"]] == [(layer, [index])]
    assert made["metric"] == name


def greedy_table(order):
    return score_table([score_row("greedy_loss", r, "layer", layer) for r, layer in enumerate(order)])


def test_a_greedy_search_goes_as_far_as_it_went():
    layers = {"unit": "layers", "metric": "greedy_loss"}
    assert plan(greedy_table([2, 0]), **layers, budget={"count": 2})["kept"]["layers"] == [1]
    assert plan(greedy_table([2, 0]), **layers, budget={"count": 1})["kept"]["layers"] == [0, 1]
    with pytest.raises(CopraError, match="the largest is 1"):
        plan(greedy_table([2]), **layers, budget={"count": 2})
    with pytest.raises(CopraError, match=r"layer 2, which this step protects.*importance\.greedy_protect"):
        plan(greedy_table([2, 0]), **layers, budget={"count": 1}, protect=[2])


KINDS = ("layers", "kv_groups", "heads", "neurons")


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=4, unique=True),
    st.sampled_from([1, 3, 8, 16]),
    st.lists(st.integers(0, 2), max_size=2, unique=True),
    st.sampled_from(["taylor", "random"]),
)
def test_every_beginning_of_the_order_is_a_legal_cut(seed, kinds, multiple, protect, metric):
    """What counting says of each step is what the cut itself leaves, and it costs less each time."""
    scores, _ = table(seed, *kinds, metric="taylor")
    prune = Prune(
        kind="prune",
        unit=kinds,
        metric=metric,
        multiple_of=multiple,
        protect=protect,
        budget={"flops": 0.5},
    )
    steps = removal_sequence(prune, SHAPE, scores, flops_of, seed)
    cut, before = KeptUnits.whole(SHAPE), flops_of(SHAPE)
    for step, counted in zip(steps, shapes_along(SHAPE, steps), strict=True):
        cut = cut.without(SHAPE, (unit for move in step for unit in move.units))
        assert cut.shape(SHAPE) == counted
        assert flops_of(counted) < before
        before = flops_of(counted)
        for layer in protect:
            assert layer in cut.layers
            assert cut.heads[layer] is None
            assert cut.neurons[layer] is None
        for layer in set(cut.layers) - set(protect):
            width = len(cut.neurons_of(SHAPE, layer))
            assert width == SHAPE.layers[layer].ffn or width % multiple == 0


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("measure", ["flops", "parameters"])
def test_kinds_compete_on_score_per_flop(target, measure):
    """Against a loop that takes the move of the least score per saved FLOP, one after the other."""
    kinds = ["kv_groups", "neurons"]
    scores, by = table(7, *kinds, metric="taylor")
    made = plan(scores, unit=kinds, metric="taylor", multiple_of=8, budget={measure: target})

    def saved(shape):
        return flops_of(SHAPE) - flops_of(shape)

    def smaller(layer, **sizes):
        layers = list(SHAPE.layers)
        layers[layer] = LayerShape(**{**layers[layer].__dict__, **sizes})
        return SHAPE.with_layers(tuple(layers))

    left = {(kind, layer): {} for kind in kinds for layer in range(3)}
    for kind in kinds:
        for (layer, index), score in by[kind].items():
            left[kind, layer][index] = score
    size = [sizes.query_heads // sizes.kv_heads for sizes in SHAPE.layers]
    weights = lambda shape: sum(  # noqa: E731
        2 * 32 * 4 * (each.query_heads + each.kv_heads) + 3 * 32 * each.ffn for each in shape.layers
    )
    measured = flops_of if measure == "flops" else weights
    shapes = [SHAPE]
    while True:
        offers = []
        for (kind, layer), units_left in left.items():
            ordered = sorted(units_left, key=units_left.get)
            if kind == "kv_groups" and len(ordered) > 1:
                groups = SHAPE.layers[layer].kv_heads - 1
                gain = saved(smaller(layer, kv_heads=groups, query_heads=groups * size[layer]))
                offers.append((units_left[ordered[0]] / gain, kind, layer, ordered[:1]))
            if kind == "neurons" and len(ordered) > 8:
                gain = saved(smaller(layer, ffn=SHAPE.layers[layer].ffn - 8))
                offers.append((sum(units_left[i] for i in ordered[:8]) / gain, kind, layer, ordered[:8]))
        if not offers:
            break
        _, kind, layer, chosen = min(offers)
        for index in chosen:
            del left[kind, layer][index]
        shapes.append(
            SHAPE.with_layers(
                tuple(
                    LayerShape(
                        len(left["kv_groups", n]) * size[n],
                        len(left["kv_groups", n]),
                        4,
                        len(left["neurons", n]),
                    )
                    for n in range(3)
                )
            )
        )
    best = min(shapes, key=lambda shape: abs(measured(shape) / measured(SHAPE) - target))
    assert made["shape_after"] == best.to_json()
    assert made[measure]["ratio"] == measured(best) / measured(SHAPE)
    assert made["flops"]["after"] == flops_of(best)


def test_random_units_of_several_kinds_depend_on_the_seed_alone():
    changes = {
        "unit": ["kv_groups", "neurons"],
        "metric": "random",
        "multiple_of": 8,
        "budget": {"flops": 0.7},
    }
    made = [plan(None, seed=seed, **changes)["kept"] for seed in range(6)]
    assert plan(None, seed=3, **changes)["kept"] == made[3]
    assert len({str(one) for one in made}) > 3


def test_an_impossible_budget_names_what_is_left():
    scores, _ = table(8, "kv_groups", "heads", metric="taylor")
    with pytest.raises(
        CopraError, match=r"KV groups and query heads: with \d+ removed (0\.\d+) are left. Give"
    ):
        plan(scores, unit=["kv_groups", "heads"], metric="taylor", budget={"parameters": 0.1})
