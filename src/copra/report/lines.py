"""The lines of figures: a method from its dense model over its cuts, one line per place of the cut."""

from collections import defaultdict
from dataclasses import dataclass

import pandas

from copra.report.sizes import QUANTIZED, left_labels, pruned_units, quantized
from copra.report.style import FILLS, assign

PRUNE = "prune"
"""The word for all consecutive prunings in an order of steps."""


@dataclass(frozen=True, eq=False)
class Line:
    """The recipes of one method, with the same trainings, the same place of the cut, quantized or not."""

    label: str
    """The method; with its base, its trainings or the place of the cut where others differ in these."""
    method: str
    rows: pandas.DataFrame
    """The recipes, and the dense model of the same trainings; see `described`."""

    def path(self, x: str) -> pandas.DataFrame:
        """Return columns x and accuracy, one row per label of what is left, in order of x: the means."""
        return self.rows.groupby("left", sort=False)[[x, "accuracy"]].mean().sort_values(x)


def described(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return a table with columns `pruned`, `left`, `quantized`, `steps`, `trainings`, `place` and `variant`.

    The first three are those of `copra.report.sizes`. `steps` are those after the base, with `PRUNE` in place
    of consecutive prunings, without a quantization, which is always the last step, and without the training
    that heals a cut, so that a line joins a method over healed cuts; `trainings` are the same without
    `PRUNE`, and `place` tells between which of them the cut was made, if recipes differ in that.
    `variant` is what the filling of a marker shows: the base, if there are several, the place, and
    "quantized".
    """
    rows = table.assign(pruned=pruned_units(table), left=left_labels(table), quantized=quantized(table))
    rows = rows.assign(
        steps=[_steps(*each) for each in zip(rows["order"], rows["pruning"], rows["quantized"], strict=True)]
    )
    rows = _without_healing(rows)
    rows = rows.assign(trainings=rows["steps"].map(_trained))
    places = [_place(*each) for each in zip(rows["steps"], rows["method"], strict=True)]
    rows = rows.assign(place=places if len(set(places) - {""}) > 1 else "")
    bases = rows["base"] if rows["base"].nunique() > 1 else [""] * len(rows)
    words = zip(bases, rows["place"], rows["quantized"].map({True: QUANTIZED, False: ""}), strict=True)
    return rows.assign(variant=[", ".join(filter(None, each)) for each in words])


def fillings(rows: pandas.DataFrame) -> dict[str, str]:
    """Return the filling of the markers of each variant of `described` rows, those not quantized first.

    Dense models, which have no place of the cut, are filled as the first variant.
    """
    variants = sorted(filter(None, dict.fromkeys(rows["variant"])), key=lambda name: QUANTIZED in name)
    first = [] if variants and QUANTIZED not in variants[0] else [""]
    return {"": "full"} | assign([*first, *variants], FILLS)


def method_lines(rows: pandas.DataFrame) -> list[Line]:
    """Return the lines of `described` rows, in the order of the table.

    A line of pruned models begins at the model with the same trainings that is not pruned. Quantized models
    have lines of their own, since their FLOPs are those of the models that they were made of. A model that is
    not pruned is a line by itself where no line begins at it.
    """
    whole = rows["steps"] == rows["trainings"]
    ends = pandas.Series(zip(rows["base"], rows["trainings"], rows["quantized"], strict=True), rows.index)
    shown = rows[~whole | ~ends.isin(ends[~whole])]
    names = _Names(rows)
    lines = []
    for _, members in shown.groupby(["base", "method", "steps", "quantized"], sort=False):
        first = members.iloc[0]
        start = rows[whole & (ends == ends[members.index[0]])]
        own = pandas.concat([start, members])
        lines.append(Line(names.of(first), first["method"], own[~own.index.duplicated()]))
    return lines


class _Names:
    """The shortest labels that keep the lines of a table apart."""

    def __init__(self, rows: pandas.DataFrame):
        self.several_bases = rows["base"].nunique() > 1
        self.trainings: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.places: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.orders: dict[tuple[str, str], set[str]] = defaultdict(set)
        for base, method, trained, place, steps in zip(
            *(rows[name] for name in ("base", "method", "trainings", "place", "steps")), strict=True
        ):
            self.trainings[base, method].add(trained)
            if place:
                self.places[base, trained].add(place)
                self.orders[base, trained].add(steps)

    def of(self, row: pandas.Series) -> str:
        base, trained = row["base"], row["trainings"]
        label = row["method"]
        if len(self.trainings[base, label]) > 1:
            label = trained.replace(" > ", " → ")
        if len(self.places[base, trained]) < len(self.orders[base, trained]):
            label = row["steps"].replace(" > ", " → ")
        elif len(self.places[base, trained]) > 1:
            label = f"{label}, {row['place']}" if row["place"] else label
        if row["quantized"]:
            label = f"{label}, {QUANTIZED}"
        return f"{base}: {label}" if self.several_bases else label


def _steps(order: str, pruning: str, small: bool) -> str:
    prunings = pruning.split(" + ")
    words: list[str] = []
    for step in order.split(" > ")[1 : -1 if small else None]:
        word = PRUNE if step in prunings else step
        if word != PRUNE or words[-1:] != [PRUNE]:
            words.append(word)
    return " > ".join(words)


def _without_healing(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows with `steps`, and `method`, as if a cut needed no healing.

    A training right after a cut heals if a model that is not pruned has the same trainings but for this one,
    ends with a method of the same kind, and none has all of them. A recipe that ends with its healing counts
    as one of the method that was healed.
    """
    whole = {
        (base, steps): kind
        for base, steps, kind in zip(rows["base"], rows["steps"], rows["kind"], strict=True)
        if steps == _trained(steps)
    }
    changed = []
    for base, steps, kind in zip(rows["base"], rows["steps"], rows["kind"], strict=True):
        words = steps.split(" > ")
        kept = [word for before, word in zip(["", *words], words, strict=False) if before != PRUNE]
        if kept[-1] == PRUNE:
            # As if the healing were the training that it repeats.
            kept[-2:] = [PRUNE, *kept[-2:-1]]
        shorter = " > ".join(kept)
        heals = (base, _trained(steps)) not in whole and whole.get((base, _trained(shorter))) == kind
        changed.append(shorter if heals else steps)
    healed = rows["steps"] != changed
    last = pandas.Series([_trained(steps).rpartition(" > ")[2] for steps in changed], rows.index)
    return rows.assign(steps=changed, method=rows["method"].where(~healed, last))


def _trained(steps: str) -> str:
    return " > ".join(step for step in steps.split(" > ") if step != PRUNE)


def _place(steps: str, method: str) -> str:
    """Return the places of the cuts as text: "cut before" the method, "cut after" it, "cut before cot"."""
    words = steps.split(" > ")
    places = []
    for step, following in zip(words, [*words[1:], ""], strict=True):
        if step == PRUNE:
            places.append(
                f"cut before {following}"
                if following not in ("", method)
                else "cut before"
                if following
                else "cut after"
            )
    return " and ".join(places)


def panel_of(pruned: str) -> str:
    """Return the panel of a model by its pruned kinds of unit: "" for dense ones, which are in all panels."""
    kinds = set(pruned.split(", ")) - {""}
    if not kinds:
        return ""
    return "layers" if kinds == {"layers"} else "both" if "layers" in kinds else "width"


PANELS = {"layers": "layers pruned", "width": "width pruned", "both": "layers and width pruned"}


def panels(rows: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Return the rows of each panel by title; dense models are in all. One panel if nothing is pruned."""
    kinds = rows["pruned"].map(panel_of)
    found = {title: rows[kinds.isin(("", kind))] for kind, title in PANELS.items() if (kinds == kind).any()}
    return found or {"": rows}
