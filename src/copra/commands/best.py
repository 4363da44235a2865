"""copra best: the most accurate recipes of a finished run under a budget."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import pandas

from copra.commands.experiment import add_experiment, experiment_of
from copra.report.comparisons import ALL
from copra.report.formats import with_interval
from copra.utils.errors import CopraError
from copra.utils.files import read_parquet
from copra.utils.quantities import amount
from copra.utils.terminal import table

PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BUDGETS = {
    "flops": ("flops", "FLOPs per answer, such as 12M", 1.0),
    "ratio": ("flops_ratio", "FLOPs per answer relative to the reference's, such as 0.5", 1.0),
    "latency": ("seconds_batch_1", "milliseconds per answer at batch 1", 1e-3),
    "bytes": ("checkpoint_bytes", "bytes of the checkpoint, such as 500M", 1.0),
    "parameters": ("parameters", "number of weights, such as 1G", 1.0),
}
"""Budgets by option: the column of the table, the help, and the unit in the column's own."""


def number(text: str) -> float:
    """Return a positive number, which may end in k, M, G, T or P."""
    digits, scale = (text[:-1], PREFIXES[text[-1]]) if text[-1:] in PREFIXES else (text, 1.0)
    try:
        value = scale * float(digits)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a positive number such as 8e6 or 8M")
    return value


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "config.yaml")
    for name, (_, words, _) in BUDGETS.items():
        parser.add_argument(f"--{name}", type=number, help=f"at most so many {words}")
    parser.add_argument("--rows", type=int, default=5, help="number of recipes to print (default: 5)")


def run(options: Namespace) -> None:
    workflow, _ = experiment_of(options)
    file = (options.results or Path(workflow.folder)) / "tables" / "accuracy_vs_flops.parquet"
    if not file.is_file():
        raise CopraError(f"{file}: is not there. Run snakemake, which makes it.")
    frame = read_parquet(file)
    rows = frame[frame["seed"] == ALL]
    for name, (column, _, unit) in BUDGETS.items():
        if (limit := getattr(options, name)) is not None:
            rows = _under(rows, name, column, limit * unit)
    rows = rows.sort_values(["accuracy", "flops"], ascending=[False, True], kind="stable")
    print(_page(rows.head(max(1, options.rows))))


def _under(rows: pandas.DataFrame, name: str, column: str, limit: float) -> pandas.DataFrame:
    """Return the rows of a budget.

    Raises:
        CopraError: the run has no such column, or no recipe is within the budget.
    """
    if column not in rows or rows[column].isna().all():
        raise CopraError(f"--{name}: this run has not measured {column}")
    within = rows[rows[column] <= limit]
    if within.empty:
        least = rows.loc[rows[column].idxmin()]
        raise CopraError(
            f"--{name}: no recipe is within the budget; the least that is left, {least['recipe']}, takes "
            f"{amount(float(least[column]) / BUDGETS[name][2])}"
        )
    return within


def _page(rows: pandas.DataFrame) -> str:
    """Return the recipes with their accuracy and costs, the most accurate first."""
    heads = ["recipe", "accuracy (%)", "FLOPs", "ratio", "ms", "bytes", "front"]
    cells = [
        [
            row["recipe"],
            with_interval(row["accuracy"], row["low"], row["high"]),
            amount(float(row["flops"])),
            _or_dash(row, "flops_ratio", "{:.2f}", 1),
            _or_dash(row, "seconds_batch_1", "{:.1f}", 1000),
            amount(float(row["checkpoint_bytes"])),
            "yes" if row["pareto"] else "",
        ]
        for _, row in rows.iterrows()
    ]
    return table(heads, cells, ["left", "right", "right", "right", "right", "right", "left"])


def _or_dash(row: pandas.Series, column: str, form: str, scale: float) -> str:
    value = row.get(column)
    return "-" if value is None or pandas.isna(value) else form.format(scale * float(value))
