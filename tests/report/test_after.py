import math

import pandas
import pytest

from copra.report.after import after_fine_tuning

WHOLE = {"layers": 4, "kv_groups": 8, "heads": 16, "neurons": 400}


def _recipe(order, pruning, accuracy, cost, seed="all", seconds=math.nan, bytes_each=4, **left):
    units = WHOLE | left
    return {
        "base": "llama",
        "order": order,
        "pruning": pruning,
        "method": [step for step in order.split(" > ") if step not in pruning.split(" + ")][-1],
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
    figure = after_fine_tuning(pandas.DataFrame(recipes))
    return {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}, figure


def _drawn(axes):
    """The lines of a panel: color, style and points."""
    lines = [container.lines[0] for container in axes.containers]
    return [(line.get_color(), line.get_linestyle(), line.get_xydata().round(6).tolist()) for line in lines]


@pytest.mark.slow
def test_each_method_is_a_color_and_each_kind_of_pruning_a_style():
    panels, figure = _panels(RECIPES)
    lines = _drawn(panels["FLOPs per answer"])
    assert [points for _, _, points in lines] == [
        [[8000, 50], [10000, 60]],
        [[9000, 55], [10000, 60]],
        [[5000, 30], [6000, 40]],
        [[4000, 20], [6000, 40]],
    ]
    colors, styles = [line[0] for line in lines], [line[1] for line in lines]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert styles[0] == styles[2]
    assert len(set(styles)) == 3
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == [
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
    layers = [points for _, _, points in _drawn(panels["layers left"])]
    assert layers == [[[3, 50], [4, 60]], [[3, 30], [4, 40]], [[3, 20], [4, 40]]]
    groups = [points for _, _, points in _drawn(panels["KV groups left, all layers together"])]
    assert groups == [[[4, 55], [8, 60]], [[3, 20], [8, 40]]]


def test_panels_in_which_nothing_varies_are_left_out():
    assert list(_panels(RECIPES)[0]) == [
        "layers left",
        "KV groups left, all layers together",
        "FLOPs per answer",
        "attention FLOPs per answer",
        "KV cache per token (bytes)",
        "checkpoint (bytes)",
    ]
    layers = [_recipe("llama > cot", "dense", 0.6, 10, seconds=0.2), RECIPES[1] | {"seconds_batch_1": 0.1}]
    assert "KV groups left, all layers together" not in _panels(layers)[0]
    assert "latency at batch 1 (s)" in _panels(layers)[0]
    neurons = [RECIPES[0], _recipe("llama > thin > cot", "thin", 0.5, 10, neurons=200)]
    figure = after_fine_tuning(pandas.DataFrame(neurons))
    assert "no pruned model differs" in figure.axes[0].texts[0].get_text()


def test_orders_of_steps_are_told_apart_and_seeds_left_out():
    recipes = [
        _recipe("llama > cot > coconut", "dense", 0.6, 10),
        _recipe("llama > cot > drop > coconut", "drop", 0.5, 8, **FEWER),
        _recipe("llama > cot > coconut > drop", "drop", 0.1, 8, **FEWER),
        _recipe("llama > cot > coconut > drop", "drop", 0.0, 8, seed="1", **FEWER),
    ]
    panels, figure = _panels(recipes)
    lines = _drawn(panels["layers left"])
    assert [points for _, _, points in lines] == [[[3, 50], [4, 60]], [[3, 10], [4, 60]]]
    assert lines[0][0] != lines[1][0]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[:2] == ["cot → prune → coconut", "cot → coconut → prune"]


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
    assert [points for _, _, points in lines] == [
        [[3200, 50], [4000, 60]],
        [[1500, 59], [4000, 60]],
        [[1200, 40], [4000, 60]],
    ]
    (color,) = {color for color, _, _ in lines}
    assert len({style for _, style, _ in lines}) == 3
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["cot", "not pruned", "layers pruned", "quantized", "layers pruned, quantized"]
    assert figure.legends[0].get_lines()[0].get_color() == color
    seconds = [points for _, _, points in _drawn(panels["latency at batch 1 (s)"])]
    assert seconds == [[[0.1, 50], [0.2, 60]], [[0.2, 60], [0.4, 59]], [[0.2, 60], [0.4, 40]]]


def test_quantized_models_are_left_out_where_quantizing_changes_nothing():
    panels, _ = _panels(QUANTIZED)
    for label in (
        "layers left",
        "FLOPs per answer",
        "attention FLOPs per answer",
        "KV cache per token (bytes)",
    ):
        assert len(_drawn(panels[label])) == 1, label
    alone = [QUANTIZED[0], QUANTIZED[2] | {"flops": 9_990}]
    assert list(_panels(alone)[0]) == ["checkpoint (bytes)", "latency at batch 1 (s)"]


def test_what_a_file_says_beside_its_weights_quantizes_nothing():
    tiny = [QUANTIZED[0], QUANTIZED[1] | {"checkpoint_bytes": 800 * 4 - 200}]
    words = [text.get_text() for text in _panels(tiny)[1].legends[0].get_texts()]
    assert words == ["cot", "not pruned", "layers pruned"]


def test_all_panels_fit_in_two_rows_and_all_looks_differ():
    kinds = {
        "layers": FEWER,
        "groups": HALF,
        "heads": {"heads": 8},
        "neurons": {"neurons": 200},
        "all": FEWER | {"kv_groups": 3, "heads": 6},
    }
    recipes = [QUANTIZED[0]]
    for name, left in kinds.items():
        order = f"llama > {name} > cot"
        recipes.append(_recipe(order, name, 0.5, 7, seconds=0.1, **left))
        recipes.append(_recipe(f"{order} > int8", f"{name} + int8", 0.4, 7, **INT8, **left))
    panels, figure = _panels(recipes)
    assert len(panels) == 7
    assert {axes.get_subplotspec().rowspan.start for axes in panels.values()} == {0, 1}
    legend = figure.legends[0].get_lines()
    looks = {(line.get_linestyle(), line.get_marker()) for line in legend[2:]}
    assert len(legend[2:]) == len(looks) == 10


def test_bases_are_told_apart():
    other = [recipe | {"base": "other"} for recipe in RECIPES[:2]]
    _, figure = _panels([*RECIPES[:2], *other])
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["llama: cot", "other: cot"]
