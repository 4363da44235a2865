"""The end of a run for people: five columns, the path of the picture, and the finding."""

from pathlib import Path
from typing import TYPE_CHECKING

from copra.report.comparisons import ALL
from copra.report.finding import finding
from copra.report.sizes import in_order, left_labels, pruned_units
from copra.utils.files import read_parquet

if TYPE_CHECKING:
    import pandas

HEADS = ("left", "method", "accuracy (%)", "FLOPs", "by seed (%)")


def summary_of(results: Path) -> str:
    """Return the summary of a folder of results; "" if it has no table of accuracy against FLOPs."""
    file = results / "tables" / "accuracy_vs_flops.parquet"
    if not file.is_file():
        return ""
    table = read_parquet(file)
    sentence = finding(table)
    picture = results / "figures" / "accuracy_vs_flops.png"
    return "\n".join(
        [*five_columns(table), "", f"Picture: {picture}", *([f"{sentence}."] if sentence else [])]
    )


def five_columns(table: "pandas.DataFrame") -> list[str]:
    """Return the lines of five columns, one per recipe, by what is left of the model.

    Accuracy has its 95% interval over questions; FLOPs per answer are relative to the reference's, if there
    is one. A recipe is named by its method, or by all its steps if another one shares method and size.
    """
    rows = table[table["seed"] == ALL]
    rows = rows.assign(pruned=pruned_units(rows), left=left_labels(rows))
    alike = rows.duplicated(["left", "method"], keep=False)
    rows = rows.assign(name=rows["method"].where(~alike, rows["order"]))
    flops, form = ("flops_ratio", ".2f") if rows["reference"].any() else ("flops", ".3g")
    cells = [HEADS]
    for left in in_order(rows):
        for _, row in rows[rows["left"] == left].iterrows():
            seeds = table[(table["recipe"] == row["recipe"]) & (table["seed"] != ALL)]
            shares = [f"{100 * row[key]:.1f}" for key in ("accuracy", "low", "high")]
            interval = "{} [{}, {}]".format(*shares)
            by_seed = " ".join(f"{100 * accuracy:.1f}" for accuracy in seeds["accuracy"])
            cells.append((left, row["name"], interval, format(row[flops], form), by_seed))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)) for line in cells)
    return [line.rstrip() for line in lines]
