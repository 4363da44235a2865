import math

import numpy
import pytest
from scipy.stats import spearmanr

from copra.pruning.scoring.scores import score_row, score_table
from copra.report.orders import drop_orders, rank_correlation, ranks
from copra.report.orders_figure import orders_figure
from copra.schema.curve import Curve, NamedCurve
from copra.schema.metrics import OF_BLOCKS
from copra.schema.shape import LayerShape, ModelShape
from copra.utils.files import write_sealed_parquet

SHAPE = ModelShape("llama", 32, 50, 3, (LayerShape(4, 2, 8, 48),) * 4)
COSINE = (0.4, 0.1, 0.3, 0.2)
TAYLOR = (5, 1, 1, 9)
# The best block of one layer is 3, that of two is 1 and 2, that of three 0 to 2: none holds the one before.
ANGULAR = {(3, 1): 0.1, (1, 2): 0.1, (0, 3): 0.1}
GROWING = (1, 2, 30, 10, 100, 400, 2000, 1500)
GROUPS = {"gradient": (1, 2, 3, 4, 5, 6, 7, 8), "gates": (1, 3, 2, 4, 8, 5, 7, 6)}


@pytest.fixture
def scores(tmp_path):
    rows = [score_row("cosine", score, "layer", layer) for layer, score in enumerate(COSINE)]
    rows += [score_row("taylor", score, "layer", layer) for layer, score in enumerate(TAYLOR)]
    rows += [score_row("gradient_token", -score, "layer", layer) for layer, score in enumerate(COSINE)]
    rows += [
        score_row(metric, ANGULAR.get((layer, length), 0.9), "block", layer, length=length)
        for metric in OF_BLOCKS
        for length in range(1, 5)
        for layer in range(5 - length)
    ]
    groups = {
        metric: [
            score_row(metric, score, "kv_group", unit // 2, unit % 2) for unit, score in enumerate(values)
        ]
        for metric, values in GROUPS.items()
    }
    rows += [
        score_row("activation", score, "kv_group", unit // 2, unit % 2) for unit, score in enumerate(GROWING)
    ]

    def write(name, found):
        write_sealed_parquet(tmp_path / "node" / f"{name}.parquet", score_table(found), {})

    for objective in ("cot", "latent"):
        write(f"{objective}/passes", rows + groups["gradient"])
    searched = [score_row("greedy_loss", turn, "layer", layer) for turn, layer in enumerate((2, 0))]
    write("cot/layers.greedy_loss", searched)
    write("cot/kv_groups.gates", groups["gates"])
    return tmp_path


def _curve(*metrics, **changes) -> Curve:
    value = {"model": "llama+cot", "unit": "layers", "remove": [1], "objectives": ["cot"], **changes}
    return Curve(metrics=metrics, **value)


def test_groups_are_ranked_by_the_scores_that_choose_them(scores):
    """Divided by the norms of their layers, as where layers compete by default; or as they are."""
    found = {}
    for normalize in (None, False):
        curve = _curve("activation", unit="kv_groups", normalize=normalize)
        found[normalize] = ranks(curve, SHAPE, scores / "node").loc["activation"].tolist()
    # Shares of the norm: 0.447 0.894, 0.949 0.316, 0.243 0.970, 0.800 0.600.
    assert found[None] == [3, 6, 7, 2, 1, 8, 5, 4]
    assert found[False] == [1, 2, 4, 3, 5, 6, 8, 7]


def test_each_metric_ranks_the_layers(scores):
    curve = _curve(
        "cosine", *OF_BLOCKS, "deepest", "taylor", "greedy_loss", "random", "gradient", abs_over="token"
    )
    table = ranks(curve, SHAPE, scores / "node")
    assert list(table.columns) == [(layer, layer) for layer in range(4)]
    nan = math.nan
    expected = {
        "cosine": [4, 1, 3, 2],
        "angular": [3, 2, 2, 1],
        "angular_mean": [3, 2, 2, 1],
        "deepest": [3, 2, 1, 4],
        "taylor": [3, 1, 2, 4],
        "greedy_loss": [2, nan, 1, nan],
        "gradient": [1, 4, 2, 3],
    }
    assert list(table.index) == list(expected)
    numpy.testing.assert_array_equal(table.to_numpy(), list(expected.values()))


def test_a_protected_layer_has_no_rank(scores):
    table = ranks(_curve("cosine", "angular", protect=[3]), SHAPE, scores / "node")
    assert [layer for layer, _ in table.columns] == [0, 1, 2]
    assert table.loc["cosine"].tolist() == [4, 1, 3]
    # Without layer 3 all blocks of one layer are equal, and the lowest goes.
    assert table.loc["angular"].tolist() == [1, 2, 2]


def test_the_table_has_a_row_a_metric_with_its_layers_in_order(scores):
    curve = _curve("cosine", "angular", "greedy_loss", "random")
    table = drop_orders([NamedCurve(name="mine", curve=curve, nodes=["node"])], {"node": SHAPE}, scores)
    assert table.to_dict("list") == {
        "curve": ["mine"] * 3,
        "recipe": ["llama+cot"] * 3,
        "node": ["node"] * 3,
        "metric": ["cosine", "angular", "greedy_loss"],
        "objective": ["cot"] * 3,
        "drops": ["1, 3, 2, 0", "3, 1 & 2, 0", "2, 0"],
    }


def test_objectives_are_told_apart(scores):
    curve = _curve("cosine", "deepest", objectives=["cot", "latent"])
    assert list(ranks(curve, SHAPE, scores / "node").index) == ["cosine (cot)", "cosine (latent)", "deepest"]


def test_rank_correlation_is_spearmans(scores):
    groups = _curve("gradient", "gates", unit="kv_groups")
    found = rank_correlation(ranks(groups, SHAPE, scores / "node"))
    assert found.loc["gradient", "gates"] == pytest.approx(spearmanr(*GROUPS.values()).statistic)
    # A search is compared by the layers that it reached, before all others.
    searched = rank_correlation(ranks(_curve("cosine", "greedy_loss"), SHAPE, scores / "node"))
    assert searched.loc["cosine", "greedy_loss"] == pytest.approx(spearmanr(COSINE, [1, 2, 0, 2]).statistic)


def test_the_figure_of_layers_writes_ranks_and_correlations(scores):
    curve = _curve("cosine", "deepest", "greedy_loss")
    figure = orders_figure(NamedCurve(name="mine", curve=curve, nodes=["node"]), SHAPE, scores / "node")
    order, correlation = figure.axes
    written = [text.get_text() for text in order.texts]
    assert written == ["4", "1", "3", "2", "3", "2", "1", "4", "2", "1"]
    assert [text.get_position() for text in order.texts[-2:]] == [(0, 2), (2, 2)]
    assert [label.get_text() for label in correlation.get_yticklabels()] == [
        "cosine",
        "deepest",
        "greedy_loss",
    ]
    assert correlation.texts[1].get_text() == f"{spearmanr(COSINE, (3, 2, 1, 4)).statistic:.2f}"
    assert len(correlation.texts) == 9


def test_other_units_have_correlations_alone_and_random_orders_nothing(scores):
    def draw(curve):
        return orders_figure(NamedCurve(name="mine", curve=curve, nodes=["node"]), SHAPE, scores / "node")

    (axes,) = draw(_curve("gradient", "gates", unit="kv_groups")).axes
    assert len(axes.texts) == 4
    (empty,) = draw(_curve("random")).axes
    assert "nothing to compare" in empty.texts[0].get_text()
