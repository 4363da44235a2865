"""Colors of methods, axes, and places of labels."""

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from copra.methods import METHODS
from copra.report.labels import Label, boxes_along, label_where_free
from copra.report.style import KINDS, method_looks, mixed, percent_axis, ratio_ticks


def test_every_kind_of_method_has_a_look_of_its_own():
    assert set(METHODS) | {"few_shot"} <= set(KINDS)
    assert len({color for color, _ in KINDS.values()}) == len(KINDS)


def test_a_kind_looks_the_same_in_every_experiment():
    small = method_looks({"answer": "no_cot", "latent": "coconut"})
    large = method_looks({"chain": "cot", "coconut": "coconut", "short": "no_cot", "more": "cot"})
    assert small["latent"] == large["coconut"]
    assert small["answer"] == large["short"]
    assert small["latent"].color != small["answer"].color


def test_methods_of_one_kind_are_shades_of_one_color():
    looks = method_looks(dict.fromkeys(("a", "b", "c"), "coconut"))
    assert len({look.color for look in looks.values()}) == 3
    assert looks["a"].color == mixed(KINDS["coconut"][0], 0)
    assert to_rgb(looks["b"].color) < to_rgb(looks["a"].color) < to_rgb(looks["c"].color)


def test_a_kind_that_is_not_known_has_a_look_by_its_name_alone():
    alone = method_looks({"own": "of_a_plugin"})["own"]
    assert alone == method_looks({"cot": "cot", "other": "another", "own": "of_a_plugin"})["own"]
    assert len({look.color for look in method_looks({str(n): f"kind-{n}" for n in range(9)}).values()}) > 3


def test_mixing_goes_to_white_and_to_black():
    assert mixed("#204060", 1) == "#ffffff"
    assert mixed("#204060", -1) == "#000000"
    assert mixed("#204060", -0.5) == "#102030"


@pytest.mark.parametrize(
    ("values", "low", "high"), [([0, 100], -3.5, 103.5), ([97, 99], 96, 100), ([], -3.5, 103.5)]
)
def test_accuracies_have_room_for_whole_markers(values, low, high):
    axes = Figure().subplots()
    percent_axis(axes, [*values, float("nan")])
    assert axes.get_ylim() == pytest.approx((low, high))
    assert all(0 <= tick <= 100 for tick in axes.get_yticks())


@pytest.mark.parametrize(
    ("limits", "ticks"),
    [
        ((0.08, 2.2), [0.1, 0.2, 0.5, 1, 2]),
        ((0.01, 1.2), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]),
        ((0.3, 1.1), [0.3, 0.5, 0.7, 1]),
    ],
)
def test_ticks_of_ratios_are_numbers_that_a_person_reads(limits, ticks):
    axes = Figure().subplots()
    axes.set_xscale("log")
    axes.set_xlim(limits)
    ratio_ticks(axes)
    assert [tick for tick in axes.get_xticks() if limits[0] <= tick <= limits[1]] == pytest.approx(ticks)
    assert len(axes.get_xticks(minor=True)) == 0


def _axes():
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return axes


def test_a_label_stands_beside_its_first_point_that_has_room():
    axes = _axes()
    wall = Bbox.from_extents(100, 0, 400, 400)
    label = Label("here", [(0.9, 0.5), (0.05, 0.5)], "#123456")
    assert label_where_free(axes, [label], [wall]) == []
    (text,) = axes.texts
    assert text.xy == (0.05, 0.5)
    assert text.get_color() == "#123456"
    assert not text.get_window_extent().overlaps(wall)


def test_labels_without_room_are_returned_and_not_written():
    axes = _axes()
    labels = [Label(f"label {number}", [(0.5, 0.5)], "black") for number in range(12)]
    left = label_where_free(axes, labels, [])
    assert 0 < len(left) < 12
    assert {text.get_text() for text in axes.texts} == {label.text for label in labels} - {
        label.text for label in left
    }
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_boxes_follow_a_line():
    boxes = boxes_along(_axes(), [(0.1, 0.1), (0.1, 0.9), (0.5, 0.9)])
    for place in ((40, 40), (40, 200), (40, 360), (120, 360), (200, 360)):
        assert any(box.contains(*place) for box in boxes)
    assert not any(box.contains(120, 120) for box in boxes)
