"""The table of scores, with the same columns for every unit and metric.

One row per unit and metric. In every metric the unit with the lowest score is removed first.

    unit         layer, block, kv_group, head or neuron
    layer        the layer; of a block its first layer
    index        the KV group, head or neuron inside the layer; of a layer or a block the same as `layer`
    length       layers in a block, otherwise 1
    metric       its name; gradient_token and gradient_batch are the metric gradient with other `abs_over`
    score        the score
    calibration  the name of the calibration set
    examples     the number of its examples
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

COLUMNS = ("unit", "layer", "index", "length", "metric", "score", "calibration", "examples")

ScoreRow = dict[str, Any]


def score_row(
    metric: str, score: float, unit: str, layer: int, index: int | None = None, length: int = 1
) -> ScoreRow:
    """Return one row of the table, without the columns of the calibration set."""
    return {
        "unit": unit,
        "layer": layer,
        "index": layer if index is None else index,
        "length": length,
        "metric": metric,
        "score": float(score),
    }


def score_table(rows: Sequence[ScoreRow], calibration: str = "", examples: int = 0) -> "pandas.DataFrame":
    """Return the rows as a table with the columns `COLUMNS`."""
    import pandas

    table = pandas.DataFrame(rows, columns=list(COLUMNS[:-2]))
    return table.assign(calibration=calibration, examples=examples)
