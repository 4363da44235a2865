import math
import xml.etree.ElementTree

import numpy
import pandas
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from copra.report.figures import (
    curriculum,
    head_importance,
    layer_distances,
    pareto,
    save,
    training_curves,
)
from copra.utils.errors import CopraError


def _table(points):
    """(pruning, method, flops, accuracy, on the front) of each recipe; the first is the reference."""
    return pandas.DataFrame(
        {
            "recipe": f"llama+{pruning}+{method}",
            "seed": "all",
            "reference": index == 0,
            "base": "llama",
            "pruning": pruning,
            "method": method,
            "order": f"{pruning} > {method}",
            "accuracy": accuracy,
            "low": accuracy - 0.02,
            "high": accuracy + 0.03,
            "flops": flops,
            "pareto": front,
        }
        for index, (pruning, method, flops, accuracy, front) in enumerate(points)
    )


POINTS = [
    ("dense", "cot", 9e9, 0.55, True),
    ("dense", "coconut", 5e9, 0.45, True),
    ("drop-1", "cot", 7e9, 0.40, False),
    ("drop-1", "coconut", 2e9, 0.30, True),
]
SCORES = pandas.DataFrame(
    [
        {
            "unit": "block",
            "layer": layer,
            "index": layer,
            "length": n,
            "metric": "angular",
            "score": abs(layer - 1) + n,
        }
        for n in (1, 2, 3)
        for layer in range(5 - n)
    ]
    + [
        {
            "unit": "layer",
            "layer": layer,
            "index": layer,
            "length": 1,
            "metric": "cosine",
            "score": 0.1 * layer,
        }
        for layer in range(4)
    ]
    + [
        {
            "unit": "head",
            "layer": layer,
            "index": h,
            "length": 1,
            "metric": metric,
            "score": sign * (10 * layer + h),
        }
        for metric, sign in (("gradient", 1), ("activation", 2))
        for layer in range(4)
        for h in range(8)
        if (layer, h) != (3, 7)
    ]
)


def _lines(axes, gid):
    return next(line for line in axes.lines if line.get_gid() == gid)


def test_pareto_draws_each_recipe_with_its_interval():
    axes = pareto(_table(POINTS)).axes[0]
    assert axes.get_xscale() == "log"
    for container, (_, _, flops, accuracy, _) in zip(axes.containers, POINTS, strict=True):
        marker, _, (bar,) = container.lines
        assert marker.get_xydata()[0] == pytest.approx((flops, 100 * accuracy))
        heights = bar.get_segments()[0][:, 1]
        assert heights == pytest.approx([100 * (accuracy - 0.02), 100 * (accuracy + 0.03)])
    markers = [container.lines[0].get_marker() for container in axes.containers]
    colors = [to_rgb(container.lines[0].get_color()) for container in axes.containers]
    assert markers[0] == markers[2] != markers[1] == markers[3]
    assert colors[0] == colors[1] != colors[2] == colors[3]


def test_pareto_draws_the_front_and_marks_the_reference():
    axes = pareto(_table(POINTS)).axes[0]
    front = _lines(axes, "front")
    assert front.get_drawstyle() == "steps-post"
    assert front.get_xydata()[:-1].ravel() == pytest.approx([2e9, 30, 5e9, 45, 9e9, 55])
    assert front.get_xydata()[-1] == pytest.approx([axes.get_xlim()[1], 55])
    assert _lines(axes, "reference").get_xydata().ravel() == pytest.approx([9e9, 55])


def test_pareto_is_linear_over_a_short_range_and_leaves_out_seeds():
    table = _table([(p, m, f / 1e9 + 100, a, front) for p, m, f, a, front in POINTS])
    table.loc[2, "seed"] = "1"
    axes = pareto(table).axes[0]
    assert axes.get_xscale() == "linear"
    assert len(axes.containers) == 3


def test_labels_never_collide():
    random = numpy.random.default_rng(0)
    points = [
        (f"p{i % 4}", f"m{i % 5}", 10 ** random.uniform(9, 10), random.uniform(0.2, 0.6), i % 3 == 0)
        for i in range(24)
    ]
    figure = pareto(_table(points))
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 3 <= len(boxes) < 24
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    places = axes.transData.transform([container.lines[0].get_xydata()[0] for container in axes.containers])
    assert not any(box.contains(*place) for box in boxes for place in places)
    frame = axes.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())


def _log(steps, loss, accuracy=None):
    lines = [{"step": step, "loss": loss, "learning_rate": 1e-4, "gradient_norm": 1.0} for step in steps]
    last = {"step": steps[-1], "validation_loss": loss + 0.5}
    return [*lines, last | ({"validation_accuracy": accuracy} if accuracy is not None else {})]


def test_stages_follow_each_other_in_one_panel():
    figure = training_curves(
        {
            "llama@0+cot": _log([1, 2, 3], 2.0),
            "llama@0+cot+coconut": _log([5, 10], 0.5),
            "llama@0+cot+coconut.1": _log([5, 10], 1.0, accuracy=0.5),
            "llama@0+cot+coconut.0": _log([10, 20], 1.5, accuracy=0.25),
            "llama@1+cot+coconut.0": _log([10, 20], 1.6),
            "llama@0+cot+drop-1": [],
        }
    )
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["llama + cot", "llama + cot + coconut"]
    axes = panels["llama + cot + coconut"]
    curves = [line for line in axes.lines if line.get_alpha() == 0.25]
    assert [list(line.get_xdata()) for line in curves] == [[10, 20], [25, 30], [35, 40], [10, 20]]
    assert [line.get_ydata()[0] for line in curves] == [1.5, 1.0, 0.5, 1.6]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [20, 30]
    validation = [line for line in axes.lines if line.get_marker() == "o"]
    assert validation[0].get_xydata().tolist() == [[20, 2.0], [30, 1.5], [40, 1.0]]
    right = next(twin for twin in figure.axes if twin is not axes and twin.bbox.bounds == axes.bbox.bounds)
    assert [line.get_xydata().tolist() for line in right.lines] == [[[20, 25]], [[30, 50]]]


def test_forty_nodes_make_small_multiples_and_none_makes_a_note():
    figure = training_curves({f"llama@0+cot+s{i}": _log([1, 2], 1.0) for i in range(40)})
    assert sum(bool(axes.get_title()) for axes in figure.axes) == 40
    assert "nothing was trained" in training_curves({}).axes[0].texts[0].get_text()


def test_layer_distances_mark_the_least_of_each_length():
    """By rank in each row: one scale for all shows short blocks in one color and long ones in another."""
    figure = layer_distances(SCORES)
    heat, dots = figure.axes[:2]
    data = numpy.ma.filled(heat.images[0].get_array().astype(float), math.nan)
    nan = math.nan
    # Distances, by hand: 2 1 2 3, then 3 2 3, then 4 3.
    numpy.testing.assert_array_equal(data, [[1 / 3, 0, 1 / 3, 1], [0.5, 0, 0.5, nan], [1, 0, nan, nan]])
    framed = [(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in heat.patches]
    assert framed == [(1, 0), (1, 1), (1, 2)]
    assert [text.get_text() for text in heat.texts] == ["1.000", "2.000", "3.000"]
    assert dots.lines[0].get_xydata() == pytest.approx(numpy.array([[n, 0.1 * n] for n in range(4)]))


def test_a_first_layer_far_from_the_others_flattens_neither_panel():
    far = SCORES.copy()
    far.loc[(far["layer"] == 0) & (far["unit"] != "head"), "score"] = 100.0
    far.loc[(far["metric"] == "cosine") & (far["layer"] > 0), "score"] += 0.01
    heat, dots = layer_distances(far).axes[:2]
    data = numpy.ma.filled(heat.images[0].get_array().astype(float), math.nan)
    assert data[0].tolist() == pytest.approx([1, 0, 1 / 3, 2 / 3])
    assert dots.get_yscale() == "log"


def test_layer_distances_have_a_panel_for_the_mean_over_tokens_too():
    mean = SCORES[SCORES["metric"] == "angular"].assign(metric="angular_mean")
    titles = [axes.get_title() for axes in layer_distances(pandas.concat([SCORES, mean])).axes]
    assert [title.split(":")[0] for title in titles if title] == ["angular", "angular_mean", "cosine"]


def test_head_importance_parts_the_groups():
    """The last layer has seven heads, in a group of its own each; the others two groups of four."""
    figure = head_importance(SCORES, group_sizes=[4, 4, 4, 1])
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["gradient", "activation"]
    for axes, factor in zip(panels.values(), (1, 2), strict=True):
        data = numpy.ma.filled(axes.images[0].get_array().astype(float), math.nan)
        assert data.shape == (4, 8)
        assert data[2, 5] == factor * 25
        assert math.isnan(data[3, 7])
        segments = [segment.tolist() for lines in axes.collections for segment in lines.get_segments()]
        assert segments == [[[3.5, row - 0.5], [3.5, row + 0.5]] for row in range(3)]


def test_head_importance_has_a_panel_a_metric_in_rows_of_three():
    heads = SCORES[(SCORES["unit"] == "head") & (SCORES["metric"] == "gradient")]
    metrics = ("taylor", "gradient", "magnitude", "contribution", "activation", "gradient_token")
    figure = head_importance(pandas.concat([heads.assign(metric=name) for name in metrics]), [4] * 4)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["gradient", "activation", "contribution", "taylor", "magnitude"]
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 3)


def test_head_importance_says_where_there_are_no_heads():
    figure = head_importance(SCORES[SCORES["unit"] != "head"], [])
    assert "nothing about heads" in figure.axes[0].texts[0].get_text()


def test_scores_without_the_metric_are_refused():
    with pytest.raises(CopraError, match="The scores hold neither"):
        layer_distances(SCORES.assign(metric="random"))


def _stages(recipe, accuracies):
    return [
        {"recipe": recipe, "stage": stage, "accuracy": value, "low": value - 0.02, "high": value + 0.04}
        for stage, value in enumerate(accuracies)
    ]


def test_curriculum_draws_a_line_a_recipe_and_averages_seeds():
    points = _stages("llama+a", [0.5, 0.4]) + _stages("llama+b", [0.3, 0.2]) + _stages("llama+b", [0.5, 0.4])
    first, second = curriculum(points).axes[0].containers
    assert first.get_label() == "llama + a"
    assert first.lines[0].get_ydata() == pytest.approx([50, 40])
    assert second.lines[0].get_ydata() == pytest.approx([40, 30])
    # Points stand at their stages, moved by points of the page alone.
    places = [line.lines[0].get_xdata().tolist() for line in (first, second)]
    assert places == [[0, 1], [0, 1]]
    drawn = [line.lines[0].get_transform().transform((1, 0.4)) for line in (first, second)]
    assert drawn[1][0] - drawn[0][0] == pytest.approx(3 / 72 * first.lines[0].figure.dpi)
    assert second.lines[2][0].get_segments()[1][:, 1] == pytest.approx([28, 34])
    assert curriculum([]).axes[0].texts


FIGURES = {
    "pareto": lambda: pareto(_table(POINTS)),
    "training_curves": lambda: training_curves({"a@0+b": _log([1, 2], 1.0, 0.5), "a@0+c.0": _log([1], 30.0)}),
    "layer_distances": lambda: layer_distances(SCORES),
    "head_importance": lambda: head_importance(SCORES, [4] * 4),
    "curriculum": lambda: curriculum(_stages("llama+a", [0.5, 0.4])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_saved_figures_are_valid_and_the_same_each_time(name, tmp_path):
    for number in (1, 2):
        save(FIGURES[name](), tmp_path / f"{number}.svg", tmp_path / f"{number}.png")
    for kind in ("svg", "png"):
        assert len({(tmp_path / f"{i}.{kind}").read_bytes() for i in (1, 2)}) == 1
    assert len(list(tmp_path.iterdir())) == 4
    assert xml.etree.ElementTree.parse(tmp_path / "1.svg").getroot().tag.endswith("svg")
    picture = imread(tmp_path / "1.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.01
