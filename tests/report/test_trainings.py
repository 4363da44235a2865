"""The figures of trainings and of a curriculum: a panel per method, a line per what is left of the model."""

import pandas
import pytest
from recipes import CUTS, WHOLE

from copra.report.by_method import LeftLooks
from copra.report.figures import curriculum, training_curves
from copra.report.style import method_looks

METHODS = {"coconut": "coconut", "cot": "cot"}


def _log(steps, loss, accuracy=None):
    lines = [{"step": step, "loss": loss, "learning_rate": 1e-4, "gradient_norm": 1.0} for step in steps]
    last = {"step": steps[-1], "validation_loss": loss + 0.5}
    return [*lines, last | ({"validation_accuracy": accuracy} if accuracy is not None else {})]


def _models(nodes, **more):
    """The models of some nodes, cut as their names say."""
    cuts = [next((cut for cut in CUTS if f"+{cut}" in node), "dense") for node in nodes]
    return pandas.DataFrame(
        [
            {"node": node, **WHOLE, **CUTS[cut]} | {key: values[index] for key, values in more.items()}
            for index, (node, cut) in enumerate(zip(nodes, cuts, strict=True))
        ]
    )


def _training(logs, methods=METHODS):
    figure = training_curves(logs, _models(logs), methods)
    return figure, {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def _drawn(axes, gid):
    return [line for line in axes.lines if line.get_gid() == gid]


LOGS = {
    "llama@0+cot": _log([1, 2, 3], 2.0),
    "llama@0+cot+coconut": _log([5, 10], 0.5),
    "llama@0+cot+coconut.1": _log([5, 10], 1.0),
    "llama@0+cot+coconut.0": _log([10, 20], 1.5),
    "llama@1+cot+coconut.0": _log([10, 20], 1.7),
    "llama@0+cot+drop-2+coconut": _log([10, 20], 3.0),
}


def test_each_method_has_a_panel_and_each_size_a_line():
    figure, panels = _training(LOGS)
    assert list(panels) == ["cot", "coconut"]
    assert [line.get_label() for line in _drawn(panels["coconut"], "mean")] == ["dense", "2 layers"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["dense", "2 layers", "validation loss"]
    assert panels["cot"].get_ylim() == panels["coconut"].get_ylim()
    assert panels["cot"].get_xlim() == panels["coconut"].get_xlim()


def test_stages_follow_each_other_and_seeds_are_averaged():
    _, panels = _training(LOGS)
    dense, pruned = _drawn(panels["coconut"], "mean")
    assert list(dense.get_xdata()) == [10, 20, 25, 30, 35, 40]
    assert dense.get_ydata() == pytest.approx([1.6, 1.6, 1.0, 1.0, 0.5, 0.5])
    assert list(pruned.get_xdata()) == [10, 20]
    seeds = _drawn(panels["coconut"], "seed")
    assert [line.get_ydata()[0] for line in seeds] == [1.5, 1.7]
    assert all(line.get_alpha() < 0.5 and line.get_linewidth() < dense.get_linewidth() for line in seeds)
    assert _drawn(panels["cot"], "seed") == []
    assert [line.get_xdata()[0] for line in _drawn(panels["coconut"], "stage")] == [20, 30]
    validation = _drawn(panels["coconut"], "validation")
    assert validation[0].get_xydata().tolist() == [[20, 2.1], [30, 1.5], [40, 1.0]]


def test_lines_are_shades_of_the_methods_color_with_the_markers_of_what_is_left():
    _, panels = _training(LOGS)
    left = LeftLooks(["dense", "2 layers"])
    dense, pruned = _drawn(panels["coconut"], "mean")
    color = method_looks(METHODS)["coconut"].color
    assert dense.get_color() == left.shade("dense", color)
    assert pruned.get_color() == left.shade("2 layers", color)
    markers = [line.get_marker() for line in _drawn(panels["coconut"], "validation")]
    assert markers == [left.marker("dense"), left.marker("2 layers")]


@pytest.mark.slow
def test_accuracy_that_was_measured_has_panels_below():
    logs = LOGS | {
        "llama@0+cot+coconut": _log([5, 10], 0.5, accuracy=0.25),
        "llama@1+cot+coconut": _log([5, 10], 0.5, accuracy=0.75),
    }
    figure, panels = _training(logs)
    ((below,),) = [[axes for axes in figure.axes if axes.get_ylabel() == "validation accuracy (%)"]]
    (line,) = _drawn(below, "mean")
    assert sorted(seed.get_ydata()[0] for seed in _drawn(below, "seed")) == [25, 75]
    assert line.get_ydata() == pytest.approx([75, 25])  # seed 1 has no stage 1, so that it ends sooner
    # The other method measured none: its panel is not shown, and the steps are written above it.
    assert [axes.get_visible() for axes in figure.axes].count(False) == 1
    assert panels["cot"].get_xlabel() == "optimizer step"
    assert panels["coconut"].get_xlabel() == ""
    assert len(_training(LOGS)[0].axes) == 2


@pytest.mark.slow
def test_losses_over_a_wide_range_have_a_log_axis():
    assert _training(LOGS)[1]["cot"].get_yscale() == "linear"
    wide = LOGS | {"llama@0+cot": _log([1, 2], 0.01), "llama@0+cot+coconut": _log([1, 2], 30.0)}
    assert {axes.get_yscale() for axes in _training(wide)[1].values()} == {"log"}


def test_the_loss_is_a_running_median():
    """A spike of one step does not show."""
    lines = [{"step": step, "loss": 9.0 if step == 50 else 1.0} for step in range(1, 101)]
    _, panels = _training({"llama@0+cot": lines})
    assert set(_drawn(panels["cot"], "mean")[0].get_ydata()) == {1.0}


def test_models_of_one_size_are_told_apart_by_their_path():
    logs = {
        "llama@0+cot+drop-2+coconut": _log([1, 2], 1.0),
        "llama@0+drop-2+cot+coconut": _log([1, 2], 2.0),
        "llama@0+cot": _log([1, 2], 1.0),
    }
    _, panels = _training(logs)
    assert [line.get_label() for line in _drawn(panels["coconut"], "mean")] == [
        "2 layers (cot → drop-2)",
        "2 layers (drop-2 → cot)",
    ]


def test_seeds_whose_cuts_differ_are_one_line():
    logs = {f"llama@{seed}+cot{cut}": _log([1, 2], 1.0) for seed in (0, 1) for cut in ("", "+half+coconut")}
    sizes = {"llama@0+cot+half+coconut": (2, 250), "llama@1+cot+half+coconut": (4, 150)}
    models = _models(logs)
    for node, (groups, neurons) in sizes.items():
        models.loc[models["node"] == node, ["kv_groups", "heads", "neurons"]] = (groups, 2 * groups, neurons)
    figure = training_curves(logs, models, METHODS)
    panels = {axes.get_title(): axes for axes in figure.axes}
    (line,) = _drawn(panels["coconut"], "mean")
    assert line.get_label() == "width ~0.45"


@pytest.mark.slow
def test_many_nodes_share_few_panels():
    nodes = [
        f"llama@{seed}+cot{cut}+s{step}" for seed in range(3) for cut in ("", "+drop-1") for step in range(6)
    ]
    logs = {node: _log([1, 2], 1.0) for node in nodes}
    figure, panels = _training(logs, {f"s{step}": "coconut" for step in range(6)})
    assert len(panels) == len(figure.axes) == 6
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 3)


def _points(stages, **nodes):
    names = [node.format(stage) for node in nodes["nodes"] for stage in stages]
    values = [value for values in nodes["accuracies"] for value in values]
    return _models(
        names,
        stage=[int(name.rsplit(".", 1)[1]) for name in names],
        accuracy=values,
        low=[value - 0.02 for value in values],
        high=[value + 0.04 for value in values],
    )


def test_a_curriculum_is_a_panel_per_method_with_seeds_averaged():
    points = _points(
        (1, 2),
        nodes=["llama@0+cot+coconut.{}", "llama@0+cot+drop-2+coconut.{}", "llama@1+cot+drop-2+coconut.{}"],
        accuracies=[[0.5, 0.4], [0.3, 0.2], [0.5, 0.4]],
    )
    figure = curriculum(points, METHODS)
    (axes,) = figure.axes
    assert axes.get_title() == "coconut"
    first, second = axes.containers
    assert [line.get_label() for line in (first, second)] == ["dense", "2 layers"]
    assert first.lines[0].get_ydata() == pytest.approx([50, 40])
    assert second.lines[0].get_ydata() == pytest.approx([40, 30])
    assert second.lines[2][0].get_segments()[1][:, 1] == pytest.approx([28, 34])
    (dots,) = [line for line in axes.lines if line.get_gid() == "seeds"]
    assert sorted(dots.get_ydata()) == pytest.approx([20, 30, 40, 50])
    # Points stand at their stages, moved by points of the page alone, inside of the axes.
    assert [line.lines[0].get_xdata().tolist() for line in (first, second)] == [[1, 2], [1, 2]]
    drawn = [line.lines[0].get_transform().transform((1, 40)) for line in (first, second)]
    assert drawn[1][0] - drawn[0][0] == pytest.approx(3 / 72 * figure.dpi)
    assert axes.get_xlim() == pytest.approx((0.7, 2.3))
