"""The end of a run: columns, path and finding, from tables written by hand."""

from recipes import recipe, table

from copra.report.finding import finding
from copra.report.summary import five_columns, summary_of

TABLE = table(
    recipe("more-cot", accuracy=[0.96, 0.98]),
    recipe("coconut", "width-50", [0.8, 0.9]),
    recipe("coconut", "drop-2", [0.9, 0.97]),
    recipe("pause-as-thought", "drop-2", [0.5, 0.52]),
)


def test_a_line_per_recipe_in_the_order_of_what_is_left():
    lines = [line.split("  ") for line in five_columns(TABLE)]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["left", "method", "accuracy (%)", "FLOPs", "by seed (%)"]
    assert [line[:2] for line in cells[1:]] == [
        ["dense", "more-cot"],
        ["2 layers", "coconut"],
        ["2 layers", "pause-as-thought"],
        ["width 0.5", "coconut"],
    ]
    accuracy, flops, by_seed = cells[2][2:]
    assert accuracy.startswith("93.5 [")
    assert (flops, by_seed) == ("0.50", "90.0 97.0")


def test_the_columns_fit_a_terminal():
    assert max(map(len, five_columns(TABLE))) <= 80


def test_recipes_with_the_same_method_and_size_are_told_by_their_steps():
    both = table(
        recipe("coconut", "drop-2", 0.9),
        recipe("coconut", "drop-2", 0.8, order="after"),
        recipe("more-cot", "drop-2", 0.7),
    )
    lines = five_columns(both)
    assert "llama > cot > drop-2 > coconut" in lines[1]
    assert "llama > cot > coconut > drop-2" in lines[2]
    assert "llama" not in lines[3]


def test_a_run_without_a_reference_shows_flops():
    (_, line) = five_columns(table(recipe("coconut", accuracy=0.9)))
    assert "1e+03" in line


def test_the_summary_ends_with_picture_and_finding(tmp_path):
    assert summary_of(tmp_path) == ""
    (tmp_path / "tables").mkdir()
    TABLE.to_parquet(tmp_path / "tables" / "accuracy_vs_flops.parquet")
    *columns, blank, picture, sentence = summary_of(tmp_path).split("\n")
    assert (columns, blank) == (five_columns(TABLE), "")
    assert picture == f"Picture: {tmp_path}/figures/accuracy_vs_flops.png"
    assert sentence == f"{finding(TABLE)}."
    (tmp_path / "tables" / "accuracy_vs_flops.parquet").unlink()
    table(recipe("more-cot")).to_parquet(tmp_path / "tables" / "accuracy_vs_flops.parquet")
    assert summary_of(tmp_path).endswith(".png")
