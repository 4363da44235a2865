"""Leave-one-out scores: the change in loss or accuracy when a single unit is removed."""

from typing import Literal

from tqdm import tqdm

from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.ablation import Ablation
from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.schema.metrics import SCORED_AS
from copra.schema.units import UnitKind, units_of


def leave_one_out(ablation: Ablation, kind: UnitKind, metric: Literal["loss", "accuracy"]) -> list[ScoreRow]:
    """Return scores of all units of a kind, each left out alone.

    `loss`: the loss without the unit minus that of the whole model. `accuracy`: the accuracy of the whole
    model minus that without the unit. Takes one evaluation per unit, and one of the whole model.
    """
    shape, whole = ablation.shape, KeptUnits.whole(ablation.shape)
    best = ablation.risk(metric, whole)
    rows = []
    for layer, index in tqdm(units_of(kind, shape), unit="unit", mininterval=5, dynamic_ncols=True):
        risk = ablation.risk(metric, whole.without(shape, [(kind, layer, index)]))
        rows.append(score_row(metric, risk - best, SCORED_AS[kind], layer, index))
    return rows
