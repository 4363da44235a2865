"""copra export: write a table as CSV in full, and as Markdown and LaTeX for people."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.common import Coded, add_settings, settings_of
from copra.report.finding import finding
from copra.report.formats import write_formats
from copra.utils.files import read_parquet


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--table", type=Path, required=True, help="Parquet table")
    for kind in ("csv", "md", "tex"):
        parser.add_argument(f"--{kind}", type=Path, required=True, help=f"{kind} file to write")


def run(options: Namespace) -> None:
    settings_of(options, Coded)
    table = read_parquet(options.table)
    note = finding(table) if options.table.stem == "accuracy_vs_flops" else ""
    write_formats(table, options.csv, options.md, options.tex, note)
