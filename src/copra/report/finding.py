"""The finding of an experiment in one sentence: the gain of latents over their control in pruned models.

The rules:

- The latent method is the first recipe of kind `coconut`, whose latents are hidden states. Its control is the
  recipe of kind `pause_as_thought` with the same base and the same order of steps otherwise, or else that of
  kind `no_cot`.
- Pruned layers and pruned width are compared separately, each at one cut: of those with a control, the one
  that leaves nearest to half of the units. It is chosen by sizes and never by accuracies.
- The gain is the mean over seeds of the difference between the two, with Student's t interval over seeds. If
  the interval contains 0, a gain is not established; with one seed there is no claim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copra.evaluation.statistics import mean_t_test
from copra.report.comparisons import ALL
from copra.report.sizes import pruned_units, shares_left
from copra.schema.units import UNIT_NAMES

if TYPE_CHECKING:
    import pandas

LATENT = "coconut"
CONTROLS = {"pause_as_thought": "pause as thought", "no_cot": "no-CoT"}
"""The kinds of control and their names in the sentence, the preferred one first."""


@dataclass(frozen=True)
class Gain:
    """The differences of the latent method from its control at one cut, in percentage points by seed."""

    control: str
    place: str
    by_seed: tuple[float, ...]
    """One difference per seed that both have; the difference of the recipes if they have one seed."""

    @property
    def mean(self) -> float:
        return sum(self.by_seed) / len(self.by_seed)

    @property
    def verdict(self) -> str:
        """One of the keys of `VERDICTS`."""
        low, high, _ = mean_t_test(self.by_seed)
        return "one seed" if low != low else "adds" if low > 0 else "costs" if high < 0 else "not shown"

    def clause(self, before: "Gain | None") -> str:
        """Return the gain as part of a sentence, short where the gain `before` has the same verdict."""
        low, high, _ = mean_t_test(self.by_seed)
        first, again = VERDICTS[self.verdict]
        form = again if before is not None and before.verdict == self.verdict else first
        return form.format(gain=self.mean, low=low, high=high, place=self.place)


VERDICTS = {
    "adds": (
        "latents add {gain:+.1f} points (95% interval {low:+.1f} to {high:+.1f}) with {place}",
        "{gain:+.1f} ({low:+.1f} to {high:+.1f}) with {place}",
    ),
    "costs": (
        "latents change accuracy by {gain:+.1f} points (95% interval {low:+.1f} to {high:+.1f}) with {place}",
        "{gain:+.1f} ({low:+.1f} to {high:+.1f}) with {place}",
    ),
    "not shown": (
        "a gain of latents is not established with {place} ({gain:+.1f} points, 95% interval {low:+.1f} to "
        "{high:+.1f})",
        "nor with {place} ({gain:+.1f}, {low:+.1f} to {high:+.1f})",
    ),
    "one seed": ("latents differ by {gain:+.1f} points with {place}", "{gain:+.1f} with {place}"),
}
"""The clause for a gain, and its short form after another gain with the same verdict."""


def finding(table: "pandas.DataFrame") -> str:
    """Return the finding of the table `accuracy_vs_flops` by the rules of this module; "" if it has none."""
    text, before = "", None
    for gain in _gains(table):
        if before is None or before.control != gain.control:
            text += f"{'; ' if text else ''}compared with {gain.control}, {gain.clause(None)}"
        else:
            text += f"{', ' if before.verdict == gain.verdict else '; '}{gain.clause(before)}"
        before = gain
    if before is not None and before.verdict == "one seed":
        return f"One seed, no claim: {text}"
    return text[:1].upper() + text[1:]


def _gains(table: "pandas.DataFrame") -> Iterator[Gain]:
    """Yield the gain at the cut of layers and at that of width, where the table has both recipes."""
    table = table.assign(pruned=pruned_units(table), shares=shares_left(table))
    recipes = table[table["seed"] == ALL]
    latent = recipes[recipes["kind"] == LATENT]
    of_layers = latent["pruned"] == "layers"
    of_width = (latent["pruned"] != "") & ~latent["pruned"].str.contains("layers")
    for cuts in (latent[of_layers], latent[of_width]):
        cuts = cuts[cuts["method"] == cuts["method"].iloc[0]] if len(cuts) else cuts
        for kind, name in CONTROLS.items():
            pairs = [
                (row, control) for _, row in cuts.iterrows() for control in _controls(recipes, row, kind)
            ]
            if pairs:
                row, control = min(pairs, key=lambda pair: abs(_left(pair[0]) - 0.5))
                yield Gain(name, _place(row, recipes), _differences(table, row["recipe"], control))
                break


def _controls(recipes: "pandas.DataFrame", row: "pandas.Series", kind: str) -> list[str]:
    """Return the recipes of a kind with the base and the order of steps of a row, but for the method."""
    others = recipes[(recipes["kind"] == kind) & (recipes["base"] == row["base"])]
    alike = [
        [name if step == row["method"] else step for step in row["order"].split(" > ")] == order.split(" > ")
        for name, order in zip(others["method"], others["order"], strict=True)
    ]
    return list(others["recipe"][alike])


def _left(row: "pandas.Series") -> float:
    """Return the mean fraction left of the pruned kinds of unit."""
    kinds = row["pruned"].split(", ")
    return sum(row["shares"][kind] for kind in kinds) / len(kinds)


def _place(row: "pandas.Series", recipes: "pandas.DataFrame") -> str:
    """Return what is left of the model, as in "2 of 4 layers" and "half of the width"."""
    kinds = row["pruned"].split(", ")
    if kinds == ["layers"]:
        return (
            f"{row['layers']:.0f} of {recipes.loc[recipes['base'] == row['base'], 'layers'].max():.0f} layers"
        )
    left = _left(row)
    share = "half" if abs(left - 0.5) < 0.02 else f"{100 * left:.0f}% of"
    names = (
        "width" if "neurons" in kinds and len(kinds) > 1 else " and ".join(UNIT_NAMES[kind] for kind in kinds)
    )
    return f"{share} the {names}"


def _differences(table: "pandas.DataFrame", recipe: str, control: str) -> tuple[float, ...]:
    """Return the differences in percentage points, by seed where both recipes have several."""
    own, other = (table[table["recipe"] == name].set_index("seed")["accuracy"] for name in (recipe, control))
    seeds = [seed for seed in own.index if seed != ALL and seed in other.index]
    return tuple(100 * float(own[seed] - other[seed]) for seed in seeds or [ALL])
