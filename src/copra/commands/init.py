"""copra init: write a commented config for a file of rows and a model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.experiment import workflow_of
from copra.experiment.starter import BASE, find_columns, starter_config
from copra.utils.errors import CopraError
from copra.utils.files import replacing
from copra.utils.gpu import gpus


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("rows", type=Path, help="file of rows: CSV, TSV, JSON, JSON lines or Parquet")
    parser.add_argument(
        "--base", default=BASE, help="model on the Hub, or the path of a folder (default: %(default)s)"
    )
    for name, words in (("question", "the question"), ("steps", "the steps"), ("answer", "the answer")):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {words} (default: a usual name)")
    parser.add_argument(
        "--output", type=Path, default=Path("mine.yaml"), help="config to write (default: %(default)s)"
    )


def run(options: Namespace) -> None:
    if options.output.exists():
        raise CopraError(f"{options.output}: exists. Name another file with --output, or remove it.")
    given = {name: getattr(options, name) for name in ("question", "steps", "answer")}
    found = find_columns(options.rows, given)
    text = starter_config(str(options.rows), found, options.base, has_gpu=bool(gpus()))
    with replacing(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    workflow_of([options.output])
    steps = repr(found.steps) if found.steps else "no steps"
    print(f"{options.rows}: {found.rows:,} rows: {found.question!r}, {steps}, {found.answer!r}")
    print(f"{options.output} is written. Next: copra check {options.output}")
