"""The end of a run for people: five columns, the paths of picture and report, and the finding."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from copra.report.comparisons import ALL
from copra.report.finding import finding
from copra.report.formats import with_interval
from copra.report.sizes import in_order, left_labels, pruned_units
from copra.utils.files import read_parquet

if TYPE_CHECKING:
    import pandas

HEADS = ("left", "method", "accuracy (%)", "FLOPs", "by seed (%)")


@dataclass(frozen=True)
class MainRow:
    """The main numbers of a recipe.

    Its name is its method, or all its steps if another one shares method and size.
    """

    left: str
    name: str
    recipe: str
    accuracy: float
    low: float
    high: float
    """The 95% interval over questions."""
    by_seed: tuple[float, ...]
    """Accuracies; none if there is one seed."""
    flops: float
    """Per answer."""
    flops_ratio: float
    """Relative to the reference; NaN if there is none."""
    parameters: int
    seconds: float
    """Latency at batch 1; NaN if it was not measured."""
    reference: bool
    on_front: bool
    """True if no other recipe is as accurate with fewer FLOPs."""

    @property
    def interval(self) -> str:
        """Accuracy with its interval in percent."""
        return with_interval(self.accuracy, self.low, self.high)

    @property
    def seeds(self) -> str:
        """The accuracies by seed in percent."""
        return " ".join(f"{100 * accuracy:.1f}" for accuracy in self.by_seed)


def main_rows(table: "pandas.DataFrame") -> list[MainRow]:
    """Return the recipes of the table `accuracy_vs_flops` by what is left of the model."""
    rows = table[table["seed"] == ALL]
    rows = rows.assign(pruned=pruned_units(rows), left=left_labels(rows))
    alike = rows.duplicated(["left", "method"], keep=False)
    rows = rows.assign(name=rows["method"].where(~alike, rows["order"]))
    found = []
    for left in in_order(rows):
        for _, row in rows[rows["left"] == left].iterrows():
            seeds = table[(table["recipe"] == row["recipe"]) & (table["seed"] != ALL)]["accuracy"]
            found.append(
                MainRow(
                    **{key: row[key] for key in ("left", "name", "recipe", "accuracy", "low", "high")},
                    by_seed=tuple(seeds),
                    flops=float(row["flops"]),
                    flops_ratio=float(row["flops_ratio"]),
                    parameters=int(row["parameters"]),
                    seconds=float(row.get("seconds_batch_1", float("nan"))),
                    reference=bool(row["reference"]),
                    on_front=bool(row["pareto"]),
                )
            )
    return found


def summary_of(results: Path) -> str:
    """Return the summary of a folder of results; "" if it has no table of accuracy against FLOPs."""
    file = results / "tables" / "accuracy_vs_flops.parquet"
    if not file.is_file():
        return ""
    table = read_parquet(file)
    sentence = finding(table)
    report = results / "report.html"
    lines = [*five_columns(table), "", f"Picture: {results / 'figures' / 'accuracy_vs_flops.png'}"]
    lines += [f"Report: {report}"] if report.is_file() else []
    return "\n".join([*lines, *([f"{sentence}."] if sentence else [])])


def five_columns(table: "pandas.DataFrame") -> list[str]:
    """Return the lines of five columns, one per recipe, by what is left of the model.

    Accuracy has its 95% interval over questions; FLOPs per answer are relative to the reference's, if there
    is one.
    """
    rows = main_rows(table)
    relative = any(row.reference for row in rows)
    cells = [HEADS]
    for row in rows:
        flops = f"{row.flops_ratio:.2f}" if relative else f"{row.flops:.3g}"
        cells.append((row.left, row.name, row.interval, flops, row.seeds))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)) for line in cells)
    return [line.rstrip() for line in lines]
