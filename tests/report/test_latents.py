"""Tables and figures about latents, from evaluations written by hand."""

import pandas
import pytest

from copra.report.formats import for_people
from copra.report.latent_tables import accuracy_vs_latents, latent_lens
from copra.report.latents import latents_figure, lens_figure


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


SWEPT = [{"recipe": "a+coconut", "node": f"a@{seed}+coconut"} for seed in (0, 1)]


def test_seeds_are_averaged_number_by_number(evaluations):
    table = accuracy_vs_latents(SWEPT, evaluations)
    assert table[["recipe", "latents", "trained", "n"]].values.tolist() == [
        ["a+coconut", 0, False, 40],
        ["a+coconut", 2, True, 40],
    ]
    assert table["accuracy"].tolist() == [0.5, 0.75]
    assert table["low"].tolist() == pytest.approx([0.4, 0.65])
    assert table["depth"].tolist() == [3.0, 5.0]
    people = for_people(table)
    assert people["Latents"].tolist() == ["0", "2"]
    assert people["As trained"].tolist() == ["", "yes"]
    assert people["Accuracy (%)"].tolist() == ["50.0 [40.0, 60.0]", "75.0 [65.0, 85.0]"]


def test_recipes_stay_in_their_order(evaluations):
    swept = [{"recipe": name, "node": f"a@{seed}+coconut"} for seed, name in enumerate(("z", "a"))]
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


def test_the_figures_show_every_point_and_token(evaluations):
    figure = latents_figure(accuracy_vs_latents(SWEPT, evaluations))
    (axes,) = figure.axes
    rings = [line for line in axes.lines if line.get_markersize() == 11]
    assert [list(ring.get_ydata()) for ring in rings] == [[75.0]]
    lens = lens_figure(pandas.read_parquet(evaluations / "a@0+coconut" / "lens.parquet"))
    assert len(lens.axes) == 2
    texts = [text.get_text() for text in lens.axes[0].texts]
    assert len(texts) == 2 * 4
    assert texts[:2] == ["0  70%", "\\n  20%"]
    assert "gold: 1 + 2 = 3 | 3 * 2 = 6 | 6" in lens.axes[0].get_title(loc="left")
    lens.draw_without_rendering()
