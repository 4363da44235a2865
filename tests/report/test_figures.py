import math
import xml.etree.ElementTree

import numpy
import pandas
import pytest
from matplotlib.image import imread
from recipes import KINDS, recipe, table

from copra.report.figures import (
    curriculum,
    head_importance,
    layer_distances,
    pareto,
    save,
    training_curves,
)
from copra.report.latents import latents_figure, layers_and_latents
from copra.utils.errors import CopraError

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


SIZES = {"layers": 4, "kv_groups": 8, "heads": 16, "neurons": 400}
LOGGED = (
    {"a@0+b": [{"step": 1, "loss": 1.0}, {"step": 2, "validation_loss": 1.0, "validation_accuracy": 0.5}]},
    pandas.DataFrame([{"node": "a@0+b", **SIZES}]),
    {"b": "cot"},
)
STAGED = (
    pandas.DataFrame([{"node": "a@0+b", "stage": 1, "accuracy": 0.5, "low": 0.4, "high": 0.6, **SIZES}]),
    {"b": "cot"},
)
SWEPT = (
    table(
        *(
            recipe("coconut", cut, 0.1 * latents, latents=latents, trained=latents == 2)
            for cut in ("dense", "drop-1")
            for latents in (0, 2)
        )
    ),
    KINDS,
)
FIGURES = {
    "pareto": lambda: pareto(
        table(recipe("more-cot", pareto=True), recipe("coconut", "drop-1", [0.3, 0.4])), KINDS
    ),
    "training_curves": lambda: training_curves(*LOGGED),
    "layer_distances": lambda: layer_distances(SCORES),
    "head_importance": lambda: head_importance(SCORES, [4] * 4),
    "curriculum": lambda: curriculum(*STAGED),
    "latents": lambda: latents_figure(*SWEPT),
    "layers_and_latents": lambda: layers_and_latents(*SWEPT),
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
