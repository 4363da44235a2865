import math

import pandas
import pytest
from matplotlib.colors import to_rgb

from copra.report.pruning import LOOKS, apart, pruning_figure


def _rows(metric, accuracies, losses, objective="cot", order=math.nan, node="llama@0+cot", unit="layers"):
    return [
        {
            "node": node,
            "unit": unit,
            "metric": metric,
            "objective": objective,
            "random_seed": order,
            "removed": removed,
            "left": 16 - removed,
            "accuracy": accuracy,
            "low": accuracy - 0.1,
            "high": accuracy + 0.1,
            "loss": loss,
            "loss_on": "cot",
        }
        for removed, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]


TABLE = pandas.DataFrame(
    _rows("cosine", [0.6, 0.5, 0.2], [1, 2, 3])
    + _rows("taylor", [0.6, 0.4, 0.3], [1, 1.5, 4])
    + _rows("random", [0.6, 0.3, 0.1], [1, 3, 5], None, 0)
    + _rows("random", [0.6, 0.1, 0.3], [1, 5, 4], None, 1)
)


def _lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_accuracy_and_loss_have_a_line_a_metric():
    left, right = pruning_figure(TABLE).axes
    assert left.get_xlabel() == right.get_xlabel() == "layers dropped (of 16)"
    assert (left.get_ylabel(), right.get_ylabel()) == ("accuracy (%)", "loss on steps and answer")
    found = _lines(left)
    assert list(found) == ["cosine", "taylor", "random, 2 orders"]
    assert found["cosine"].get_ydata() == pytest.approx([60, 50, 20])
    assert _lines(right)["taylor"].get_ydata() == pytest.approx([1, 1.5, 4])
    # At the very numbers, and each line thinner than those that it may hide.
    assert [line.get_xdata().tolist() for line in found.values()] == [[0, 1, 2]] * 3
    widths = [(line.get_linewidth(), line.get_markersize()) for line in found.values()]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    for axes in (left, right):
        looks = {name: (line.get_color(), line.get_marker()) for name, line in _lines(axes).items()}
        assert looks["cosine"] == LOOKS["cosine"]
        assert len(set(looks.values())) == 3


def test_numbers_far_apart_are_drawn_where_they_are():
    """In steps of thousands a shift by a part of a step makes 13,824 neurons look like 12,900."""
    far = TABLE.assign(removed=TABLE["removed"] * 6912, unit="neurons")
    lines = _lines(pruning_figure(far).axes[0]).values()
    assert [line.get_xdata().tolist() for line in lines] == [[0, 6912, 13824]] * 3


def test_random_orders_are_a_band_with_their_mean():
    left, right = pruning_figure(TABLE).axes
    assert _lines(left)["random, 2 orders"].get_ydata() == pytest.approx([60, 20, 20])
    (band,) = right.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1, 3), (1, 5), (2, 4), (2, 5)} <= corners
    # The first is that of the whole model's interval, which is a patch.
    assert len(left.collections) == 1


def test_the_whole_model_is_a_broken_line_on_its_interval():
    left, right = pruning_figure(TABLE).axes
    levels = [
        next(line for line in axes.lines if line.get_gid() == "whole").get_ydata()[0]
        for axes in (left, right)
    ]
    assert levels == pytest.approx([60, 1])
    (interval,) = left.patches
    assert (interval.get_y(), interval.get_height()) == pytest.approx((50, 20))


def test_the_name_of_each_line_stands_where_it_ends():
    """In the color of its line, in the order of the ends, and none on another."""
    metrics = [metric for metric in LOOKS if metric != "random"]
    ends = [_rows(metric, [0.6, 0.3, 0.3], [1, 2, 2 + 0.001 * i]) for i, metric in enumerate(metrics)]
    figure = pruning_figure(pandas.DataFrame([row for rows in ends for row in rows]))
    figure.draw_without_rendering()
    axes = figure.axes[-1]
    names = [text for text in axes.texts if text.get_text() in LOOKS]
    upwards = sorted(names, key=lambda text: text.get_position()[1])
    assert [text.get_text() for text in upwards] == metrics
    boxes = [text.get_window_extent() for text in names]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    markers = [line for line in axes.lines if line.get_gid() == "leader" and line.get_marker() != "None"]
    for text, marker in zip(names, markers, strict=True):
        assert marker.get_ydata()[0] == text.get_position()[1]
        assert to_rgb(marker.get_color()) == to_rgb(LOOKS[text.get_text()][0])


def test_objectives_differ_in_style_and_are_named_where_there_are_several():
    rows = _rows("taylor", [0.6, 0.4], [1, 2]) + _rows("taylor", [0.6, 0.5], [1, 1.5], "latent")
    rows += _rows("magnitude", [0.6, 0.2], [1, 3], None)
    found = _lines(pruning_figure(pandas.DataFrame(rows)).axes[0])
    styles = {name: line.get_linestyle() for name, line in found.items()}
    assert styles == {"taylor (cot)": "-", "taylor (latent)": "--", "magnitude": "-"}
    assert found["taylor (cot)"].get_color() == found["taylor (latent)"].get_color()


def test_seeds_of_a_model_are_averaged():
    rows = _rows("cosine", [0.6, 0.4], [1, 2]) + _rows("cosine", [0.8, 0.5], [2, 4], node="llama@1+cot")
    left, right = pruning_figure(pandas.DataFrame(rows)).axes
    assert _lines(left)["cosine"].get_ydata() == pytest.approx([70, 45])
    assert _lines(right)["cosine"].get_ydata() == pytest.approx([1.5, 3])


def test_a_model_that_cannot_answer_has_the_panel_of_the_loss_alone():
    silent = TABLE.assign(accuracy=math.nan, low=math.nan, high=math.nan, unit="kv_groups", loss_on="latent")
    (axes,) = pruning_figure(silent).axes
    assert axes.get_xlabel() == "KV groups removed (of 16)"
    assert axes.get_ylabel() == "loss on the answer"


def test_a_loss_that_grows_far_is_drawn_on_a_log_scale():
    assert pruning_figure(TABLE).axes[1].get_yscale() == "linear"
    grown = pandas.DataFrame(_rows("cosine", [0.6, 0.1], [0.1, 9]))
    assert pruning_figure(grown).axes[1].get_yscale() == "log"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.62, 0.5, 0.54], [0.6533333, 0.4533333, 0.5533333]),
        ([1, 0.98, 0.2], [1, 0.9, 0.2]),
        ([0.01, 0.05, 0.5], [0, 0.1, 0.5]),
        ([0] * 21, [i / 20 for i in range(21)]),
    ],
)
def test_heights_are_moved_apart(heights, expected):
    assert apart(heights, 0.1) == pytest.approx(expected)
