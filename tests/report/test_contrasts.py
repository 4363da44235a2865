import math
from itertools import pairwise

import numpy
import pandas
import pytest
from matplotlib.colors import to_hex
from scipy.stats import ttest_1samp

from copra.evaluation.statistics import holm, two_level_bootstrap
from copra.report.contrasts import contrasts
from copra.report.contrasts_figure import contrasts_figure
from copra.report.formats import for_people
from copra.report.style import settle
from copra.schema.contrast import NamedContrast
from copra.utils.errors import CopraError

SHARES = {"a": 0.9, "b": 0.5, "c": 0.6, "d": 0.55}
FIRST = NamedContrast(name="a-over-b", plus=["l+a"], minus=["l+b"])
TWO = NamedContrast(name="depth-not-width", plus=["l+a", "l+d"], minus=["l+b", "l+c"])
THIRD = NamedContrast(name="c-over-d", plus=["l+c"], minus=["l+d"])


@pytest.fixture
def run(write_evaluation):
    """Four recipes with three seeds: the answers by recipe, [3, 50], the folders and the nodes."""
    rng = numpy.random.default_rng(0)
    answers, folders, nodes = {}, {}, {}
    for name, share in SHARES.items():
        answers[f"l+{name}"] = rng.random((3, 50)) < share + rng.normal(0, 0.05, (3, 1))
        nodes[f"l+{name}"] = [f"l@{seed}+{name}" for seed in (3, 1, 2)]
        for node, right in zip(nodes[f"l+{name}"], answers[f"l+{name}"], strict=True):
            folders[node] = write_evaluation(node, right)
    return answers, folders, nodes


@pytest.mark.slow
def test_a_contrast_is_computed_for_each_seed(run):
    answers, folders, nodes = run
    table = contrasts(folders, [FIRST, TWO, THIRD], nodes, "depth-not-width")
    assert list(table["contrast"]) == [each.name for each in (FIRST, TWO, THIRD) for _ in range(4)]
    assert list(table["seed"]) == ["all", "3", "1", "2"] * 3
    assert list(table["seeds"]) == [3, 1, 1, 1] * 3
    assert set(table["n"]) == {50}
    by_seed = {name: right.mean(axis=1) for name, right in answers.items()}
    expected = {
        "a-over-b": by_seed["l+a"] - by_seed["l+b"],
        "depth-not-width": by_seed["l+a"] - by_seed["l+b"] - (by_seed["l+c"] - by_seed["l+d"]),
        "c-over-d": by_seed["l+c"] - by_seed["l+d"],
    }
    whole = table[table["seed"] == "all"].set_index("contrast")
    for name, values in expected.items():
        rows = table[(table["contrast"] == name) & (table["seed"] != "all")]
        assert rows["value"].tolist() == pytest.approx(values)
        assert rows[["t_low", "t_p", "t_p_holm", "bootstrap_low"]].isna().all(axis=None)
        oracle = ttest_1samp(values, 0)
        row = whole.loc[name]
        assert row["value"] == pytest.approx(values.mean())
        assert row["t_p"] == pytest.approx(oracle.pvalue)
        assert (row["t_low"], row["t_high"]) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    numbers = {name: right.astype(float) for name, right in answers.items()}
    difference = numbers["l+a"] + numbers["l+d"] - numbers["l+b"] - numbers["l+c"]
    found = whole.loc["depth-not-width", ["bootstrap_low", "bootstrap_high"]]
    assert tuple(found) == two_level_bootstrap(difference)
    assert whole.loc["depth-not-width", ["plus", "minus"]].tolist() == ["l+a, l+d", "l+b, l+c"]
    # The primary contrast stands as it is, and is none of those that the others are corrected for.
    assert whole["primary"].tolist() == [False, True, False]
    raw = whole["t_p"].tolist()
    corrected = holm([raw[0], raw[2]])
    assert whole["t_p_holm"].tolist() == pytest.approx([corrected[0], raw[1], corrected[1]])
    assert contrasts(folders, [FIRST, TWO, THIRD], nodes)["t_p_holm"].dropna().tolist() == pytest.approx(
        holm(raw)
    )


@pytest.mark.slow
def test_people_read_points(run):
    _, folders, nodes = run
    view = for_people(contrasts(folders, [FIRST, TWO], nodes))
    assert list(view) == [
        "Contrast",
        "Plus",
        "Minus",
        "Seed",
        "Value (points)",
        "t interval over seeds (points)",
        "p",
        "Holm's p",
        "Bootstrap over seeds and questions (points)",
        "Seeds",
    ]
    assert view["Value (points)"][0].startswith("+")
    assert view["t interval over seeds (points)"][0].startswith("[+")
    assert list(view["t interval over seeds (points)"][1:4]) == ["-"] * 3


@pytest.mark.slow
def test_one_seed_has_a_value_and_no_interval(run):
    answers, folders, nodes = run
    table = contrasts(folders, [FIRST], {recipe: each[:1] for recipe, each in nodes.items()})
    (row,) = table.to_dict("records")
    assert row["value"] == pytest.approx(answers["l+a"][0].mean() - answers["l+b"][0].mean())
    assert (row["seed"], row["seeds"]) == ("all", 1)
    assert all(math.isnan(row[key]) for key in ("t_low", "t_high", "t_p", "t_p_holm", "bootstrap_low"))
    assert for_people(table)["t interval over seeds (points)"].tolist() == ["one seed"]


@pytest.mark.slow
def test_a_recipe_without_randomness_stands_for_every_seed(run, write_evaluation):
    answers, folders, nodes = run
    right = numpy.arange(50) % 2 == 0
    folders["hub+ask"] = write_evaluation("hub+ask", right)
    contrast = NamedContrast(name="x", plus=["hub+ask"], minus=["l+a"])
    table = contrasts(folders, [contrast], {**nodes, "hub+ask": ["hub+ask"]})
    assert table["seed"].tolist() == ["all", "3", "1", "2"]
    assert table["value"][1:].tolist() == pytest.approx(0.5 - answers["l+a"].mean(axis=1))


@pytest.mark.slow
def test_what_is_no_pair_is_refused(run, write_evaluation):
    _, folders, nodes = run
    fewer = {**nodes, "l+b": nodes["l+b"][:2]}
    with pytest.raises(CopraError, match=r"^contrasts\.a-over-b: l\+b has 2 seeds and another recipe 3"):
        contrasts(folders, [FIRST], fewer)
    folders["l@9+z"] = write_evaluation("l@9+z", [1, 0, 1])
    contrast = NamedContrast(name="x", plus=["l+a"], minus=["l+z"])
    with pytest.raises(CopraError, match="evaluated on different questions"):
        contrasts(folders, [contrast], {**nodes, "l+z": ["l@9+z"]})
    with pytest.raises(CopraError, match=r"l@4\+z: has no evaluation"):
        contrasts(folders, [contrast], {**nodes, "l+z": ["l@4+z"]})


def _rows(name, values, primary=False, p_holm=0.04):
    """The rows of a contrast with these values by seed, and an interval of 5 points either way."""
    mean = float(numpy.mean(values))
    interval = {"t_low": mean - 0.05, "t_high": mean + 0.05, "t_p": 0.02, "t_p_holm": p_holm}
    interval = interval if len(values) > 1 else dict.fromkeys(interval, math.nan)
    described = {"contrast": name, "primary": primary}
    rows = [{**described, "seed": "all", "value": mean, **interval}]
    if len(values) > 1:
        rows += [{**described, "seed": str(seed), "value": value} for seed, value in enumerate(values)]
    return rows


LONG = "coconut-over-pause-as-thought-after-the-healing-of-two-layers"


def _figure(*contrasts_):
    figure = contrasts_figure(pandas.DataFrame([row for rows in contrasts_ for row in rows]))
    return figure, figure.axes[0]


def test_a_line_per_contrast_with_a_dot_per_seed():
    figure, axes = _figure(
        _rows("first", [0.1, 0.2, 0.3]), _rows(LONG, [-0.3, -0.1], primary=True, p_holm=0.02)
    )
    means = [container.lines[0] for container in axes.containers]
    assert [line.get_xdata()[0] for line in means] == pytest.approx([20, -20])
    assert [line.get_marker() for line in means] == ["s", "D"]
    bars = [container.lines[2][0].get_segments()[0][:, 0].tolist() for container in axes.containers]
    assert [end for bar in bars for end in bar] == pytest.approx([15, 25, -25, -15])
    dots = [line for line in axes.lines if line.get_mfc() == "none"]
    assert [dot.get_xdata().tolist() for dot in dots] == [
        pytest.approx([10, 20, 30]),
        pytest.approx([-30, -10]),
    ]
    (zero,) = [line for line in axes.lines if line.get_gid() == "zero"]
    assert zero.get_xdata() == [0, 0]
    assert axes.yaxis_inverted()
    weights = [label.get_fontweight() for label in axes.get_yticklabels()]
    assert weights == ["normal", "bold"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["+20.0 [+15.0, +25.0]\np 0.020, Holm 0.040", "-20.0 [-25.0, -15.0]\np 0.020"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        "mean over seeds, 95% t interval",
        "primary: mean over seeds, 95% t interval",
        "each seed",
    ]


def test_one_seed_is_a_point_that_says_so():
    figure, axes = _figure(_rows("first", [0.1]), _rows("second", [0.0]))
    assert [text.get_text() for text in axes.texts] == ["+10.0, one seed", "+0.0, one seed"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed"]


def test_labels_of_contrasts_never_overlap_and_stay_in_the_picture():
    """The longest names that a config allows, in one figure with short ones."""
    names = ["x", LONG, "y" * 60, "a-b-" * 15, "z"]
    figure, axes = _figure(*(_rows(name, [0.1, 0.2 + i / 9]) for i, name in enumerate(names)))
    settle(figure)
    left = [label.get_window_extent() for label in axes.get_yticklabels()]
    right = [text.get_window_extent() for text in axes.texts]
    for boxes in (left, right):
        assert all(above.y0 > below.y1 for above, below in pairwise(boxes))
    inside = figure.bbox
    for box in (*left, *right, *(legend.get_window_extent() for legend in figure.legends)):
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
    assert all(a.x1 < axes.bbox.x0 and axes.bbox.x1 < b.x0 for a, b in zip(left, right, strict=True))


def test_it_is_drawn_in_shades_of_grey():
    _, axes = _figure(_rows("first", [0.1, 0.2]), _rows("second", [0.1, 0.2], primary=True))
    colors = {to_hex(line.get_color()) for line in axes.lines}
    assert all(color[1:3] == color[3:5] == color[5:7] for color in colors)
