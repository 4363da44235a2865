"""The table of models in the formats of other programs."""

from collections.abc import Sequence
from pathlib import Path

import pandas

from copra.utils.files import read_parquet


def conversions(converted: Sequence[tuple[str, str]], folder: Path) -> pandas.DataFrame:
    """Return one row per recipe and format: the checkpoint itself ("copra"), then the other programs' files.

    `converted` lists nodes with their recipes; `folder` holds one folder per node with measured.parquet,
    whose columns are those of `copra.evaluation.conversions.measure_conversions`.
    """
    tables = [
        read_parquet(folder / node / "measured.parquet").assign(recipe=recipe) for node, recipe in converted
    ]
    table = pandas.concat(tables, ignore_index=True)
    return table[["recipe", *table.columns.drop("recipe")]]
