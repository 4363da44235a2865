"""Sizes of models relative to their base: the pruned kinds of unit, and labels for what is left.

Every function takes the rows of a table with the columns `base` and the numbers of units. The largest model
of a base among the rows stands for the base.
"""

from typing import TYPE_CHECKING, Any

from copra.schema.units import UNIT_NAMES

if TYPE_CHECKING:
    import pandas

WITHIN = {"kv_groups": "layers", "heads": "kv_groups", "neurons": "layers"}
"""The kind of unit that takes units of another kind along when it is removed."""
SMALLER = 0.9
"""Bytes per parameter, relative to the largest, below which weights count as quantized. Otherwise they differ
only by the headers of the files, a few hundredths in tiny models."""
ALIKE = 0.05
"""Largest difference between the fractions left of attention and of the FFN that count as equal."""
DENSE, QUANTIZED = "dense", "quantized"


def bytes_a_parameter(rows: Any) -> Any:
    """Return the bytes per parameter of one row of a table or of each row."""
    return rows["checkpoint_bytes"] / rows["parameters"]


def pruned_units(rows: "pandas.DataFrame") -> list[str]:
    """Return the pruned kinds of unit per row, joined by commas as in "kv_groups, neurons"; "" for none.

    Units that were removed with a layer, or query heads with their KV group, do not count as pruned.
    """
    return [", ".join(kind for kind, share in each.items() if share < 1) for each in shares_left(rows)]


def quantized(rows: "pandas.DataFrame") -> list[bool]:
    """Return True for rows whose weights take fewer bytes per parameter than the base's."""
    widths = bytes_a_parameter(rows)
    return list(widths < SMALLER * widths.groupby(rows["base"]).transform("max"))


def shares_left(rows: "pandas.DataFrame") -> list[dict[str, float]]:
    """Return the fraction of each kind of unit that is left per row, within what is left of the layers.

    Fractions of query heads are those within the KV groups that are left.
    """
    sizes = rows[list(UNIT_NAMES)].astype(float)
    left = sizes / sizes.groupby(rows["base"]).transform("max")
    within = left.assign(**{kind: left[kind] / left[outer] for kind, outer in WITHIN.items()})
    return within.round(9).to_dict("records")


def left_labels(rows: "pandas.DataFrame") -> list[str]:
    """Return a label per row for what is left of the model, as in "dense", "2 layers" and "width 0.5".

    The width is the mean fraction left of the pruned kinds where both attention and FFN are pruned. Where
    these differ, it is rounded to a twentieth, as in "width ~0.6", so that cuts of one budget have one label.
    """
    shares = shares_left(rows)
    return [_label(int(layers), share) for layers, share in zip(rows["layers"], shares, strict=True)]


def in_order(rows: "pandas.DataFrame", labels: str = "left") -> list[str]:
    """Return the distinct labels of a column, from the dense model to the smallest, kind by kind."""
    sizes = rows.assign(kinds=[len(kinds) for kinds in rows["pruned"].str.split(", ")], width=_widths(rows))
    columns = ["kinds", "pruned", "layers", "width"]
    ordered = sizes.assign(dense=rows["pruned"] == "").sort_values(
        ["dense", *columns], ascending=[False, True, True, False, False], kind="stable"
    )
    return list(dict.fromkeys(ordered[labels]))


def _widths(rows: "pandas.DataFrame") -> list[float]:
    """Return the mean fraction left of the kinds of unit besides layers, per row."""
    return [sum(share[kind] for kind in WITHIN) for share in shares_left(rows)]


def _label(layers: int, shares: dict[str, float]) -> str:
    words = [f"{layers} layer{'s' if layers > 1 else ''}"] if shares["layers"] < 1 else []
    narrow = {kind: shares[kind] for kind in WITHIN if shares[kind] < 1}
    if len(narrow) > 1 and "neurons" in narrow:
        width = sum(narrow.values()) / len(narrow)
        even = max(narrow.values()) - min(narrow.values()) <= ALIKE
        words.append(f"width {width:.2g}" if even else f"width ~{round(20 * width) / 20:.2g}")
    else:
        words += [f"{name} {narrow[kind]:.2g}" for kind, name in UNIT_NAMES.items() if kind in narrow]
    return ", ".join(words) or DENSE
