"""The figure of accuracy against FLOPs: what each mark stands for."""

import numpy
import pytest
from matplotlib.colors import to_hex
from recipes import CUTS, KINDS, left_share, recipe, table

from copra.report.finding import finding
from copra.report.style import method_looks
from copra.report.tables import pareto_front
from copra.report.tradeoff import PLAIN, pareto


def drawn(*recipes):
    """The figure of some recipes, with the front as the table has it, and its panels."""
    rows = table(*recipes)
    whole = rows[rows["seed"] == "all"]
    front = dict(zip(whole["recipe"], pareto_front(whole["accuracy"], whole["flops"]), strict=True))
    figure = pareto(rows.assign(pareto=rows["recipe"].map(front)), KINDS)
    return figure, figure.axes


def lines(axes, gid):
    return [line for line in axes.lines if (line.get_gid() or "").split(" ")[0] == gid]


def marks(axes):
    """The marker of each recipe's point, by recipe."""
    return {container.get_label(): container.lines[0] for container in axes.containers}


def words(axes):
    return [text.get_text() for text in axes.texts]


METHODS = ("more-cot", "no-cot", "coconut", "pause-as-thought")
ALL = [
    recipe(method, cut, 0.9 - 0.15 * number - 0.02 * place)
    for number, method in enumerate(METHODS)
    for place, cut in enumerate(("dense", "drop-1", "drop-2", "drop-3", "width-75", "width-50"))
]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything():
    return drawn(*ALL)


def test_layers_and_width_have_a_panel_each_and_dense_models_are_in_both(everything):
    _, (layers, width) = everything
    assert [axes.get_title() for axes in (layers, width)] == ["layers pruned", "width pruned"]
    for axes, cuts in ((layers, ("drop-1", "drop-2", "drop-3")), (width, ("width-75", "width-50"))):
        names = {f"llama+cot+{method}" for method in METHODS}
        assert set(marks(axes)) == names | {f"llama+cot+{cut}+{method}" for cut in cuts for method in METHODS}
    assert layers.get_ylim() == width.get_ylim()
    assert layers.get_xlim() == width.get_xlim()


def test_a_line_joins_a_method_over_its_cuts_in_order_of_flops(everything):
    _, (layers, _) = everything
    (coconut,) = [line for line in lines(layers, "line") if line.get_gid() == "line coconut"]
    assert coconut.get_xdata() == pytest.approx(
        [left_share(cut) for cut in ("drop-3", "drop-2", "drop-1", "dense")]
    )
    assert coconut.get_ydata() == pytest.approx([54, 56, 58, 60])


def test_color_and_dash_are_the_methods_and_markers_what_is_left(everything):
    figure, (layers, width) = everything
    looks = method_looks(KINDS)
    for axes in (layers, width):
        for line in lines(axes, "line"):
            look = looks[line.get_gid().removeprefix("line ")]
            assert to_hex(line.get_color()).upper() == look.color.upper()
        assert len({line.get_linestyle() for line in lines(axes, "line")} - {"None"}) > 1
        for name, mark in marks(axes).items():
            assert mark.get_color() == looks[name.rpartition("+")[2]].color
    legend = {line.get_label(): line.get_marker() for line in figure.legends[0].get_lines()}
    assert list(legend)[:6] == ["dense", "3 layers", "2 layers", "1 layer", "width 0.75", "width 0.5"]
    assert len(set(legend.values())) == 7  # the front has none
    for cut, label in (("drop-2", "2 layers"), ("drop-3", "1 layer")):
        for method in METHODS:
            assert marks(layers)[f"llama+cot+{cut}+{method}"].get_marker() == legend[label]


def test_lines_are_labeled_in_their_color_where_labels_cover_nothing(everything):
    figure, panels = everything
    looks = method_looks(KINDS)
    for axes in panels:
        labels = {text.get_text(): text for text in axes.texts}
        assert set(labels) == set(METHODS)
        assert all(text.get_color() == looks[name].color for name, text in labels.items())
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        places = axes.transData.transform([mark.get_xydata()[0] for mark in marks(axes).values()])
        assert not any(box.contains(*place) for box in boxes for place in places)
        frame = axes.get_window_extent().padded(1)
        assert all(frame.contains(*corner) for box in boxes for corner in box.corners())
    assert not set(METHODS) & {text.get_text() for text in figure.legends[0].get_texts()}


def test_lines_without_room_for_a_label_are_in_the_legend():
    """Thirty methods within two points of accuracy."""
    random = numpy.random.default_rng(0)
    many = {f"method-{number}": "coconut" for number in range(30)}
    cuts = ("dense", "drop-1")
    rows = table(*(recipe("coconut", cut, random.uniform(0.5, 0.52)) for _ in many for cut in cuts))
    rows = rows.assign(method=[name for name in many for _ in cuts])
    for column in ("recipe", "order"):
        named = zip(rows[column], rows["method"], strict=True)
        rows[column] = [text.replace("coconut", name) for text, name in named]
    figure = pareto(rows.assign(pareto=rows.index == 0), many)
    labeled = set(words(figure.axes[0]))
    listed = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labeled
    assert labeled | listed >= set(many)
    assert not labeled & listed


def test_flops_are_relative_to_the_reference_with_plain_ticks(everything):
    _, (axes, _) = everything
    assert axes.get_xlabel() == "FLOPs per answer (cot → more-cot = 1)"
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == pytest.approx([0.3, 0.5, 0.7, 1.0])
    text = axes.xaxis.get_major_formatter()
    assert [text(tick) for tick in (0.1, 0.5, 2)] == ["0.1", "0.5", "2"]
    wide = [recipe("more-cot"), recipe("coconut", "drop-3", flops_ratio=0.1)]
    axes = drawn(*wide)[1][0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == pytest.approx([0.1, 0.2, 0.5, 1.0])


def test_without_a_reference_flops_are_absolute():
    axes = drawn(recipe("coconut"), recipe("coconut", "drop-1"))[1][0]
    assert axes.get_xlabel() == "FLOPs per answer"
    assert marks(axes)["llama+cot+coconut"].get_xdata()[0] == 1000
    assert axes.get_xscale() == "linear"


def test_points_have_their_intervals():
    axes = drawn(recipe("more-cot", accuracy=0.5))[1][0]
    _, _, (bar,) = axes.containers[0].lines
    assert bar.get_segments()[0][:, 1] == pytest.approx([48, 53])


def test_chance_is_a_labeled_gray_line_where_it_is_known():
    axes = drawn(recipe("more-cot", chance=0.5), recipe("coconut", "drop-1", chance=0.5))[1][0]
    (line,) = lines(axes, "chance")
    assert list(line.get_ydata()) == [50, 50]
    assert "chance (50%)" in words(axes)
    axes = drawn(recipe("more-cot"))[1][0]
    assert lines(axes, "chance") == []


def test_single_seeds_are_light_dots_and_counted_under_the_axes():
    figure, (axes, _) = drawn(
        recipe("more-cot"), recipe("coconut", "drop-1", [0.2, 0.4, 0.6]), recipe("coconut", "thin")
    )
    (dots,) = lines(axes, "seeds")
    assert sorted(dots.get_ydata()) == pytest.approx([20, 40, 60])
    assert dots.get_alpha() < 0.5
    assert marks(axes)["llama+cot+drop-1+coconut"].get_ydata() == pytest.approx([40])
    assert "200 questions, 3 seeds" in figure.legends[0].get_title().get_text()
    figure, (axes,) = drawn(recipe("more-cot"))
    assert lines(axes, "seeds") == []
    assert "200 questions, one seed" in figure.legends[0].get_title().get_text()


def test_the_title_is_the_finding_or_the_plain_name():
    rows = [recipe("more-cot"), recipe("coconut", "drop-2", 0.6), recipe("pause-as-thought", "drop-2", 0.5)]
    assert drawn(*rows)[0].get_suptitle().replace("\n", " ") == finding(table(*rows)) != ""
    assert drawn(*rows[:2])[0].get_suptitle() == PLAIN


def test_the_front_of_all_recipes_is_a_step_line_in_each_panel():
    """A model of pruned width is on the front; its step is seen beside the models of pruned layers too."""
    recipes = [
        recipe("more-cot", "dense", 0.9),
        recipe("coconut", "drop-1", 0.5),
        recipe("coconut", "width-50", 0.7),
    ]
    for axes in drawn(*recipes)[1]:
        (front,) = lines(axes, "front")
        assert front.get_drawstyle() == "steps-post"
        assert front.get_xydata()[:-1].ravel() == pytest.approx([0.5, 70, 1, 90])
        assert front.get_xydata()[-1] == pytest.approx([axes.get_xlim()[1], 90])
        assert front.get_zorder() < min(line.get_zorder() for line in lines(axes, "line"))


def test_points_at_all_and_none_are_whole():
    recipes = [recipe("more-cot", "dense", 1.0), recipe("coconut", "drop-1", 0.0)]
    axes = drawn(*recipes)[1][0]
    low, high = axes.get_ylim()
    assert low < -2 < 102 < high
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == pytest.approx(
        [0, 20, 40, 60, 80, 100]
    )
    assert not any(mark.get_clip_on() for mark in marks(axes).values())


def test_orders_of_steps_are_lines_of_one_color_with_other_fillings():
    recipes = [recipe("more-cot"), recipe("coconut", accuracy=0.9)]
    recipes += [
        recipe("coconut", "drop-1", 0.7 if order == "before" else 0.2, order=order)
        for order in ("before", "after")
    ]
    figure, (axes,) = drawn(*recipes)
    assert {"coconut, cut before", "coconut, cut after"} <= set(words(axes))
    found = marks(axes)
    before, after = found["llama+cot+drop-1+coconut"], found["llama+cot+coconut+drop-1"]
    assert before.get_color() == after.get_color()
    assert (before.get_fillstyle(), after.get_fillstyle()) == ("full", "none")
    legend = {line.get_label(): line.get_fillstyle() for line in figure.legends[0].get_lines()}
    assert (legend["cut before"], legend["cut after"]) == ("full", "none")


@pytest.mark.parametrize(
    ("cuts", "titles"),
    [
        (["dense"], [""]),
        (["drop-1"], ["layers pruned"]),
        (["thin", "both"], ["width pruned", "layers and width pruned"]),
    ],
)
def test_kinds_of_cut_that_do_not_occur_have_no_panel(cuts, titles):
    assert set(cuts) <= set(CUTS)
    _, panels = drawn(recipe("more-cot"), *(recipe("coconut", cut) for cut in cuts))
    assert [axes.get_title() for axes in panels] == titles
