"""Tables and figures about latents, from evaluations written by hand."""

import json

import numpy
import pandas
import pytest
from recipes import KINDS, recipe

from copra.evaluation.statistics import paired_bootstrap, recipe_difference, wilson_interval
from copra.report.formats import for_people
from copra.report.latent_sources import latent_sources
from copra.report.latent_sources_figure import sources_figure
from copra.report.latent_tables import accuracy_vs_latents, latent_lens
from copra.report.latents import latents_figure, layers_and_latents
from copra.report.lens import lens_figure
from copra.utils.errors import CopraError


@pytest.fixture
def evaluations(tmp_path):
    """Two seeds of one recipe swept over 0 and 2 latents, and a lens on two questions."""
    for node, accuracies in (("a@0+coconut", (0.25, 0.5)), ("a@1+coconut", (0.75, 1.0))):
        (tmp_path / node).mkdir()
        pandas.DataFrame(
            [
                {
                    "node": node,
                    "latents": number,
                    "trained": number == 2,
                    "precision": "float32",
                    "n": 40,
                    "correct": round(40 * accuracy),
                    "accuracy": accuracy,
                    "low": accuracy - 0.1,
                    "high": accuracy + 0.1,
                    "flops": 1000.0 + number,
                    "depth": 3.0 + number,
                }
                for number, accuracy in zip((0, 2), accuracies, strict=True)
            ]
        ).to_parquet(tmp_path / node / "latents.parquet")
        units = {"layers": 3, "kv_groups": 6, "heads": 12, "neurons": 300}
        metrics = {"units": units, "parameters": 100, "checkpoint_bytes": 400}
        (tmp_path / node / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        {
            "node": "a@0+coconut",
            "id": f"q{question}",
            "question": f"How many, {question} $x_1$?",
            "steps": ["1 + 2 = 3", "3 * 2 = 6"],
            "gold": "6",
            "precision": "float32",
            "generated": "3 * 2 = 6\n### 6",
            "latent": latent,
            "rank": rank,
            "token": token,
            "probability": share,
        }
        for question in range(2)
        for latent in range(2)
        for rank, (token, share) in enumerate([(str(latent), 0.7), ("\n", 0.2), (" x", 0.06), ("y", 0.01)])
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "a@0+coconut" / "lens.parquet")
    return tmp_path


LABELS = {"base": "a", "pruning": "dense", "method": "coconut", "order": "a > coconut", "kind": "coconut"}
SWEPT = [{"recipe": "a+coconut", "node": f"a@{seed}+coconut", **LABELS} for seed in (0, 1)]


def test_seeds_are_averaged_number_by_number(evaluations):
    table = accuracy_vs_latents(SWEPT, evaluations)
    assert table[["recipe", "latents", "trained", "n"]].values.tolist() == [
        ["a+coconut", 0, False, 40],
        ["a+coconut", 2, True, 40],
    ]
    assert table["accuracy"].tolist() == [0.5, 0.75]
    assert table["low"].tolist() == pytest.approx([0.4, 0.65])
    assert table["depth"].tolist() == [3.0, 5.0]
    assert (
        table[["base", "method", "kind", "pruned", "layers"]].values.tolist()
        == [["a", "coconut", "coconut", "", 3]] * 2
    )
    assert table["chance"].isna().all()
    guessed = accuracy_vs_latents([one | {"chance": 0.5} for one in SWEPT], evaluations)
    assert list(guessed["chance"]) == [0.5, 0.5]
    people = for_people(table)
    assert people["Latents"].tolist() == ["0", "2"]
    assert people["As trained"].tolist() == ["", "yes"]
    assert people["Accuracy (%)"].tolist() == ["50.0 [40.0, 60.0]", "75.0 [65.0, 85.0]"]


def test_recipes_stay_in_their_order(evaluations):
    swept = [one | {"recipe": name} for one, name in zip(SWEPT, ("z", "a"), strict=True)]
    table = accuracy_vs_latents(swept, evaluations)
    assert list(zip(table["recipe"], table["latents"], strict=True)) == [
        ("z", 0),
        ("z", 2),
        ("a", 0),
        ("a", 2),
    ]


def test_a_row_a_latent_says_what_is_likeliest(evaluations):
    table = latent_lens(["a@0+coconut"], evaluations)
    assert len(table) == 4
    assert table["latent"].tolist() == [1, 2, 1, 2]
    # The three likeliest, with line breaks and outer spaces made visible.
    assert table["says"].tolist()[:2] == ["0 70%, \\n 20%, \u2423x 6%", "1 70%, \\n 20%, \u2423x 6%"]
    assert table["steps"].iloc[0] == "1 + 2 = 3 | 3 * 2 = 6"
    assert table["generated"].iloc[0] == "3 * 2 = 6 | ### 6"
    assert {"Says", "Gold steps", "Latent"} <= set(for_people(table))


def test_signs_that_cannot_be_seen_are_written_out(evaluations):
    path = evaluations / "a@0+coconut" / "lens.parquet"
    frame = pandas.read_parquet(path)
    frame["token"] = ["\t", "\r\n", "\u200b", "a b"] * 4
    frame.to_parquet(path)
    says = latent_lens(["a@0+coconut"], evaluations)["says"].iloc[0]
    assert says == r"\t 70%, \r\n 20%, \u200b 6%"


def test_the_lens_shows_every_token(evaluations):
    lens = lens_figure(pandas.read_parquet(evaluations / "a@0+coconut" / "lens.parquet"))
    assert len(lens.axes) == 2
    texts = [text.get_text() for text in lens.axes[0].texts]
    assert len(texts) == 2 * 4
    assert texts[:2] == ["0  70%", "\\n  20%"]
    assert "gold: 1 + 2 = 3 | 3 * 2 = 6 | 6" in lens.axes[0].get_title(loc="left")
    lens.draw_without_rendering()


def answered(seed: int, share: float) -> list[bool]:
    return (numpy.random.default_rng(seed).random(50) < share).tolist()


RIGHT = {
    ("a@0+coconut", "own"): answered(0, 0.8),
    ("a@0+coconut", "other"): answered(1, 0.3),
    ("a@1+coconut", "own"): answered(2, 0.7),
    ("a@1+coconut", "other"): answered(3, 0.4),
    ("hub+codi", "own"): answered(4, 0.5),
    ("hub+codi", "other"): answered(4, 0.5),
}
SWAPPED = [
    {"recipe": "a+coconut", "nodes": ["a@0+coconut", "a@1+coconut"]},
    {"recipe": "hub+codi", "nodes": ["hub+codi", "hub+codi"]},
]


@pytest.fixture
def swapped(tmp_path):
    """Two seeds of one recipe and a recipe without randomness, with own latents and those of others."""
    for node in dict.fromkeys(node for node, _ in RIGHT):
        rows = [
            {"node": node, "source": source, "precision": "float32", "n": 50}
            | {"changed": 30 * (source == "other"), "is_correct": RIGHT[node, source]}
            | {"other_gold": 0.25 + 0.5 * (node == "a@1+coconut") if source == "other" else None}
            for source in ("own", "other")
        ]
        (tmp_path / node).mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_parquet(tmp_path / node / "latents_from.parquet")
    return tmp_path


def test_sources_are_compared_with_own_question_by_question_and_seed_by_seed(swapped):
    table = latent_sources(SWAPPED, swapped)
    names = [("a+coconut", seed, source) for seed in ("all", "0", "1") for source in ("own", "other")]
    names += [("hub+codi", "all", source) for source in ("own", "other")]
    assert list(zip(table["recipe"], table["seed"], table["source"], strict=True)) == names
    own, other = (
        numpy.array([RIGHT[f"a@{seed}+coconut", source] for seed in (0, 1)], dtype=float)
        for source in ("own", "other")
    )
    row = table.iloc[1]
    assert (row["n"], row["accuracy"]) == (50, pytest.approx(other.mean()))
    assert (row["low"], row["high"]) == pytest.approx(wilson_interval(other.mean() * 50, 50))
    assert row["minus_own"] == pytest.approx(other.mean() - own.mean())
    interval = paired_bootstrap(other.mean(axis=0), own.mean(axis=0))
    assert (row["checkpoints_low"], row["checkpoints_high"]) == pytest.approx(interval)
    found = row[["recipe_low", "recipe_high", "recipe_p"]].astype(float)
    assert list(found) == pytest.approx(recipe_difference(other, own, paired=True))
    assert (row["changed"], row["other_gold"]) == (pytest.approx(0.6), pytest.approx(0.5))
    first = table.iloc[3]
    assert first["minus_own"] == pytest.approx(other[0].mean() - own[0].mean())
    assert (first["other_gold"], first["checkpoints_p"] < 0.01) == (0.25, True)
    assert pandas.isna(first["recipe_low"])
    numbers = table[["minus_own", "checkpoints_low", "recipe_p", "other_gold"]]
    assert numbers[table["source"] == "own"].isna().all(axis=None)
    # Nothing was drawn, so training again would give the same difference.
    assert list(table.iloc[7][["minus_own", "recipe_low", "recipe_high"]]) == [0, 0, 0]


def test_people_read_sources_with_their_difference_from_own(swapped):
    people = for_people(latent_sources(SWAPPED[:1], swapped))
    assert list(people["Latents from"]) == ["own", "other"] * 3
    assert list(people["Changed answers (%)"]) == ["0.0", "60.0"] * 3
    assert list(people["Answers of the other question (%)"])[:4] == ["-", "50.0", "-", "25.0"]
    differences = people["Difference, these checkpoints (points)"]
    assert differences[0] == "-"
    assert differences[1].startswith("-")
    one = for_people(latent_sources([{"recipe": "a", "nodes": ["a@0+coconut"]}], swapped))
    assert list(one["Difference, this recipe (points)"]) == ["-", "one seed"]


def test_the_figure_of_sources_has_a_mark_for_each_and_only_own_is_filled(swapped):
    figure = sources_figure(latent_sources(SWAPPED, swapped))
    (axes,) = figure.axes
    marks = [container.lines[0] for container in axes.containers]
    assert [container.get_label() for container in axes.containers] == ["own", "other"]
    for mark, source in zip(marks, ("own", "other"), strict=True):
        expected = numpy.mean([RIGHT[f"a@{seed}+coconut", source] for seed in (0, 1)])
        assert list(mark.get_xdata()) == pytest.approx(
            [100 * expected, 100 * numpy.mean(RIGHT["hub+codi", source])]
        )
    assert len({mark.get_marker() for mark in marks}) == 2
    assert [mark.get_markerfacecolor() == mark.get_color() for mark in marks] == [True, False]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a + coconut", "hub + codi"]
    # The first recipe is at the top.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    figure.draw_without_rendering()


def swept(*recipes, trained=2):
    """The table of recipes with an accuracy per number of latents, from 0."""
    rows = [
        row | {"latents": latents, "trained": latents == trained, "depth": 3.0}
        for method, cut, accuracies, changes in recipes
        for latents, accuracy in enumerate(accuracies)
        for row in recipe(method, cut, accuracy, **changes)
    ]
    return pandas.DataFrame(rows)


DENSE = ("coconut", "dense", [0.7, 0.8, 0.9], {})
CUT = ("coconut", "drop-2", [0.1, 0.2, 0.65], {})
CONTROL = ("pause-as-thought", "dense", [0.5, 0.5, 0.5], {})
CONTROL_CUT = ("pause-as-thought", "drop-2", [0.4, 0.4, 0.4], {})
WIDTH = ("coconut", "width-50", [0.3, 0.3, 0.3], {})


def test_accuracy_against_latents_is_a_panel_per_method_and_a_line_per_size():
    figure = latents_figure(swept(DENSE, CUT, CONTROL), KINDS)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["coconut", "pause-as-thought"]
    assert [container.get_label() for container in first.containers] == ["dense", "2 layers"]
    assert first.containers[1].lines[0].get_ydata() == pytest.approx([10, 20, 65])
    assert first.containers[1].lines[0].get_xdata() == pytest.approx([0, 1, 2], abs=0.13)
    rings = [line for line in first.lines if line.get_gid() == "trained"]
    assert [list(ring.get_ydata()) for ring in rings] == [[90], [65]]
    assert first.get_ylim() == second.get_ylim()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["dense", "2 layers", "as trained"]
    assert first.title.get_color() != second.title.get_color()


def test_orders_of_steps_have_panels_of_their_own():
    after = ("coconut", "drop-2", [0.1, 0.1, 0.1], {"order": "after"})
    figure = latents_figure(swept(DENSE, CUT, after), KINDS)
    assert [axes.get_title() for axes in figure.axes] == ["coconut, cut before", "coconut, cut after"]
    assert [len(axes.containers) for axes in figure.axes] == [2, 2]


def cells(axes):
    """The numbers written in the cells of a panel, row by row."""
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    rows, columns = axes.images[0].get_array().shape
    return [[texts.get((column, row), "") for column in range(columns)] for row in range(rows)]


def test_layers_and_latents_is_a_map_per_method_with_the_most_layers_at_the_top():
    figure = layers_and_latents(swept(DENSE, CUT, CONTROL, CONTROL_CUT, WIDTH), KINDS)
    maps = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in maps] == ["coconut", "pause-as-thought"]
    # Rounded to the nearest; 0.65 is just above 65. The model of pruned width is no row.
    assert cells(maps[0]) == [["70", "80", "90"], ["10", "20", "65"]]
    assert cells(maps[1]) == [["50"] * 3, ["40"] * 3]
    assert [text.get_text() for text in maps[0].get_yticklabels()] == ["4", "2"]
    assert [text.get_text() for text in maps[0].get_xticklabels()] == ["0", "1", "2"]
    framed = [patch for patch in maps[0].patches if patch.get_gid() == "trained"]
    assert sorted((patch.get_x() + 0.44, patch.get_y() + 0.42) for patch in framed) == [(2, 0), (2, 1)]
    # One scale for all maps, whose colors are read in gray too.
    assert len({axes.images[0].get_clim() for axes in maps}) == 1
    assert maps[0].images[0].get_clim() == pytest.approx((10, 90))
    shades = maps[0].images[0].cmap(range(0, 256, 16)) @ [0.299, 0.587, 0.114, 0]
    assert list(shades) == sorted(shades)


def test_small_differences_do_not_span_the_color_scale():
    flat = [("coconut", cut, [0.50, 0.51], {}) for cut in ("dense", "drop-2")]
    figure = layers_and_latents(swept(*flat, trained=1), KINDS)
    assert figure.axes[0].images[0].get_clim() == pytest.approx((50, 60))


def test_cells_that_were_not_measured_are_blank():
    short = ("coconut", "drop-2", [0.1], {})
    (axes,) = [axes for axes in layers_and_latents(swept(DENSE, short), KINDS).axes if axes.get_title()]
    assert cells(axes) == [["70", "80", "90"], ["10", "", ""]]


def test_methods_of_one_size_have_no_map():
    figure = layers_and_latents(swept(DENSE, CUT, CONTROL), KINDS)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["coconut"]
    with pytest.raises(CopraError, match="different numbers of layers"):
        layers_and_latents(swept(DENSE, WIDTH), KINDS)
