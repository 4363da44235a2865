"""Greedy search: remove, in every round, the layer whose removal hurts the model least."""

from collections.abc import Collection
from typing import Literal

from tqdm import tqdm

from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.ablation import Ablation
from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.schema.metrics import SCORED_AS
from copra.utils.errors import CopraError


def greedy(
    ablation: Ablation,
    metric: Literal["loss", "accuracy"],
    removals: int | None,
    protect: Collection[int] = (),
) -> list[ScoreRow]:
    """Return the layers that a greedy search removes, each scored by its round of removal, counted from 0.

    The search removes `removals` layers, or as many as possible if that is None. In every round it evaluates
    the model without each remaining layer that is not in `protect`, and removes the layer without which loss
    is lowest or accuracy highest (the lowest layer of equals). Removing 4 of 16 layers takes 16 + 15 + 14 +
    13 = 58 evaluations.

    Raises:
        CopraError: a protected layer does not exist, or fewer than `removals` layers can be removed.
    """
    shape = ablation.shape
    layers = len(shape.layers)
    if strangers := [layer for layer in protect if layer >= layers]:
        raise CopraError(
            f"importance.greedy_protect: there is no layer {strangers[0]}; the model has {layers} layers, "
            "counted from 0."
        )
    free = [layer for layer in range(layers) if layer not in protect]
    most = min(len(free), layers - 1)
    if not most:
        raise CopraError(
            f"importance.greedy_protect: no layer can go. Of the model's {layers} layers one has to stay and "
            f"{layers - len(free)} are protected. Protect fewer."
        )
    if removals is None:
        removals = most
    if removals > most:
        raise CopraError(
            f"importance.greedy_removals: {removals} layers cannot go. Of the model's {layers} layers one "
            f"has to stay and {layers - len(free)} are protected, which leaves {most}. Lower it."
        )
    cut, rows = KeptUnits.whole(shape), []
    bar = tqdm(
        total=sum(len(free) - done for done in range(removals)),
        unit="candidate",
        mininterval=5,
        dynamic_ncols=True,
    )
    for done in range(removals):
        cuts = {layer: cut.without(shape, [("layers", layer, layer)]) for layer in free}
        risks = {}
        for layer, candidate in cuts.items():
            risks[layer] = ablation.risk(metric, candidate)
            bar.update()
        gone = min(free, key=risks.__getitem__)
        cut = cuts[gone]
        free.remove(gone)
        rows.append(score_row(f"greedy_{metric}", done, SCORED_AS["layers"], gone))
    bar.close()
    return rows
