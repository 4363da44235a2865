import math

import pandas
import pytest

from copra.report.after import after_fine_tuning
from copra.report.style import method_looks

METHODS = {"cot": "cot", "coconut": "coconut"}
WHOLE = {"layers": 4, "kv_groups": 8, "heads": 16, "neurons": 400}


def _recipe(order, pruning, accuracy, cost, seed="all", seconds=math.nan, bytes_each=4, **left):
    units = WHOLE | left
    method = [step for step in order.split(" > ") if step not in pruning.split(" + ")][-1]
    return {
        "recipe": order.replace(" > ", "+"),
        "base": "llama",
        "chance": math.nan,
        "order": order,
        "pruning": pruning,
        "method": method,
        "kind": METHODS.get(method, method),
        "seed": seed,
        "accuracy": accuracy,
        "low": accuracy - 0.02,
        "high": accuracy + 0.03,
        **units,
        "flops": 1000 * cost,
        "attention_flops": 100 * cost,
        "kv_cache_bytes_per_token": 64 * units["kv_groups"],
        "parameters": 100 * cost,
        "checkpoint_bytes": 100 * cost * bytes_each,
        "seconds_batch_1": seconds,
    }


FEWER = {"layers": 3, "kv_groups": 6, "heads": 12, "neurons": 300}
HALF = {"kv_groups": 4, "heads": 8}
RECIPES = [
    _recipe("llama > cot", "dense", 0.6, 10),
    _recipe("llama > drop > cot", "drop", 0.5, 8, **FEWER),
    _recipe("llama > half > cot", "half", 0.55, 9, **HALF),
    _recipe("llama > cot > coconut", "dense", 0.4, 6),
    _recipe("llama > cot > drop > coconut", "drop", 0.3, 5, **FEWER),
    _recipe(
        "llama > cot > drop > half > coconut", "drop + half", 0.2, 4, **FEWER | {"kv_groups": 3, "heads": 6}
    ),
]


def _panels(recipes):
    figure = after_fine_tuning(pandas.DataFrame(recipes), METHODS)
    return {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}, figure


def _drawn(axes):
    """The lines of a panel: color and points."""
    lines = [container.lines[0] for container in axes.containers]
    return [(line.get_color(), line.get_xydata().round(6).tolist()) for line in lines]


def _markers(axes):
    """The markers of the changed models of a panel by its lines, with their fillings."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "_", "o")]
    return [(line.get_marker(), line.get_fillstyle()) for line in lines]


def _words(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.slow
def test_each_method_is_a_color_and_each_kind_of_pruning_a_marker():
    panels, figure = _panels(RECIPES)
    lines = _drawn(panels["FLOPs per answer"])
    assert [points for _, points in lines] == [
        [[8000, 50], [10000, 60]],
        [[9000, 55], [10000, 60]],
        [[5000, 30], [6000, 40]],
        [[4000, 20], [6000, 40]],
    ]
    looks = method_looks(METHODS)
    assert [color for color, _ in lines] == [looks["cot"].color] * 2 + [looks["coconut"].color] * 2
    markers = [marker for marker, _ in _markers(panels["FLOPs per answer"])]
    assert markers[0] == markers[2]
    assert len(set(markers)) == 3
    assert _words(figure) == [
        "cot",
        "coconut",
        "not pruned",
        "layers pruned",
        "KV groups pruned",
        "layers + KV groups pruned",
    ]


def test_points_have_their_intervals():
    panels, _ = _panels(RECIPES)
    bars = panels["FLOPs per answer"].containers[0].lines[2][0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [pytest.approx([48, 53]), pytest.approx([58, 63])]


def test_a_panel_of_units_shows_what_was_pruned_of_them():
    """A layer takes its KV groups along, which is no pruning of KV groups."""
    panels, _ = _panels(RECIPES)
    layers = [points for _, points in _drawn(panels["layers left"])]
    assert layers == [[[3, 50], [4, 60]], [[3, 30], [4, 40]], [[3, 20], [4, 40]]]
    groups = [points for _, points in _drawn(panels["KV groups left, all layers together"])]
    assert groups == [[[4, 55], [8, 60]], [[3, 20], [8, 40]]]


def test_panels_in_which_nothing_varies_are_left_out():
    assert list(_panels(RECIPES)[0]) == [
        "layers left",
        "KV groups left, all layers together",
        "FLOPs per answer",
        "KV cache per token (bytes)",
    ]
    layers = [_recipe("llama > cot", "dense", 0.6, 10, seconds=0.2), RECIPES[1] | {"seconds_batch_1": 0.1}]
    assert "KV groups left, all layers together" not in _panels(layers)[0]
    neurons = [RECIPES[0], _recipe("llama > thin > cot", "thin", 0.5, 10, neurons=200)]
    _, figure = _panels(neurons)
    assert "the same size and cost" in figure.axes[0].texts[0].get_text()


@pytest.mark.slow
def test_a_panel_whose_points_lie_as_in_an_earlier_one_is_left_out():
    """Attention FLOPs and bytes are proportional to FLOPs in these recipes; then one of them is not."""
    assert "attention FLOPs per answer" not in _panels(RECIPES)[0]
    bent = [RECIPES[0], RECIPES[2] | {"attention_flops": 400}, *RECIPES[3:]]
    assert "attention FLOPs per answer" in _panels(bent)[0]


@pytest.mark.slow
def test_latency_below_a_second_is_in_milliseconds():
    for seconds, label, x in ((0.1, "latency at batch 1 (ms)", 100), (1.5, "latency at batch 1 (s)", 1.5)):
        dense = RECIPES[0] | {"seconds_batch_1": 2 * seconds}
        # Not proportional to FLOPs, which would be the same panel again.
        pruned = [RECIPES[1] | {"seconds_batch_1": seconds}, RECIPES[5] | {"seconds_batch_1": 1.9 * seconds}]
        pruned[1] |= {"method": "cot", "order": "llama > drop > half > cot", "recipe": "other"}
        panels, _ = _panels([dense, *pruned])
        assert _drawn(panels[label])[0][1][0][0] == pytest.approx(x)
        assert all("m" not in tick.get_text() for tick in panels[label].get_xticklabels())


def test_points_at_all_and_none_are_whole():
    panels, _ = _panels([RECIPES[0] | {"accuracy": 1.0, "high": 1.0}, RECIPES[1] | {"accuracy": 0, "low": 0}])
    low, high = panels["layers left"].get_ylim()
    assert low < 0 < 100 < high
    ticks = [tick for tick in panels["layers left"].get_yticks() if low <= tick <= high]
    assert ticks == pytest.approx([0, 20, 40, 60, 80, 100])


def test_orders_of_steps_are_told_apart_and_seeds_left_out():
    recipes = [
        _recipe("llama > cot > coconut", "dense", 0.6, 10),
        _recipe("llama > cot > drop > coconut", "drop", 0.5, 8, **FEWER),
        _recipe("llama > cot > coconut > drop", "drop", 0.1, 8, **FEWER),
        _recipe("llama > cot > coconut > drop", "drop", 0.0, 8, seed="1", **FEWER),
    ]
    panels, figure = _panels(recipes)
    lines = _drawn(panels["layers left"])
    assert [points for _, points in lines] == [[[3, 50], [4, 60]], [[3, 10], [4, 60]]]
    assert lines[0][0] == lines[1][0]
    assert _markers(panels["layers left"]) == [("s", "full"), ("s", "none")]
    assert _words(figure)[-2:] == ["cut before", "cut after"]


INT8 = {"bytes_each": 1.5, "seconds": 0.4}
QUANTIZED = [
    _recipe("llama > cot", "dense", 0.6, 10, seconds=0.2),
    _recipe("llama > drop > cot", "drop", 0.5, 8, seconds=0.1, **FEWER),
    _recipe("llama > cot > int8", "int8", 0.59, 10, **INT8),
    _recipe("llama > drop > cot > int8", "drop + int8", 0.4, 8, **INT8, **FEWER),
]


def test_quantized_models_are_beside_pruned_ones():
    """They are known by their bytes per weight, since a step may have any name."""
    panels, figure = _panels(QUANTIZED)
    lines = _drawn(panels["checkpoint (bytes)"])
    assert [points for _, points in lines] == [
        [[3200, 50], [4000, 60]],
        [[1500, 59], [4000, 60]],
        [[1200, 40], [4000, 60]],
    ]
    assert len({color for color, _ in lines}) == 1
    assert _markers(panels["checkpoint (bytes)"]) == [("s", "full"), ("s", "none")]
    assert _words(figure) == ["cot", "not pruned", "layers pruned", "quantized"]
    seconds = [points for _, points in _drawn(panels["latency at batch 1 (ms)"])]
    assert seconds == [[[100, 50], [200, 60]], [[200, 60], [400, 59]], [[200, 60], [400, 40]]]


def test_quantized_models_are_left_out_where_quantizing_changes_nothing():
    panels, _ = _panels(QUANTIZED)
    assert len(_drawn(panels["layers left"])) == 1
    # With one line, FLOPs and cache would show the same points as the layers.
    assert list(panels) == ["layers left", "checkpoint (bytes)", "latency at batch 1 (ms)"]
    alone = [QUANTIZED[0], QUANTIZED[2] | {"flops": 9_990}]
    assert list(_panels(alone)[0]) == ["checkpoint (bytes)", "latency at batch 1 (ms)"]


def test_what_a_file_says_beside_its_weights_quantizes_nothing():
    tiny = [QUANTIZED[0], QUANTIZED[1] | {"checkpoint_bytes": 800 * 4 - 200}]
    assert _words(_panels(tiny)[1]) == ["cot", "not pruned", "layers pruned"]


@pytest.mark.slow
def test_all_panels_fit_in_rows_of_three_and_all_looks_differ():
    kinds = {
        "layers": FEWER,
        "groups": HALF,
        "heads": {"heads": 8},
        "neurons": {"neurons": 200},
        "all": FEWER | {"kv_groups": 3, "heads": 6},
    }
    recipes = [QUANTIZED[0]]
    for index, (name, left) in enumerate(kinds.items()):
        order = f"llama > {name} > cot"
        cost = {"attention_flops": 900 - 77 * index**2}
        recipes.append(_recipe(order, name, 0.5, 7 + index / 4, seconds=0.1, **left) | cost)
        recipes.append(_recipe(f"{order} > int8", f"{name} + int8", 0.4, 7, **INT8, **left))
    panels, figure = _panels(recipes)
    assert len(panels) == 7
    rows = [axes.get_subplotspec().rowspan.start for axes in panels.values()]
    assert rows == [0, 0, 0, 1, 1, 1, 2]
    markers = [line.get_marker() for line in figure.legends[0].get_lines()]
    assert len(set(markers[1:7])) == 6


def test_bases_are_told_apart_by_the_filling():
    other = [
        recipe | {"base": "other", "recipe": f"other {index}"} for index, recipe in enumerate(RECIPES[:2])
    ]
    panels, figure = _panels([*RECIPES[:2], *other])
    assert _words(figure)[-2:] == ["llama", "other"]
    assert _markers(panels["layers left"]) == [("s", "full"), ("s", "none")]


def test_nothing_is_false_where_no_dense_model_was_evaluated():
    """Two prunings of one method can be compared without the dense model."""
    cuts = [
        RECIPES[1],
        RECIPES[1] | {"recipe": "b", "order": "llama > more > cot", "pruning": "more", "layers": 2},
    ]
    cuts[1] |= {"flops": 5000}
    panels, _ = _panels([RECIPES[3], *cuts])
    assert _drawn(panels["layers left"])[0][1] == [[2, 50], [3, 50]]
