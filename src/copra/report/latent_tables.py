"""Tables of latents: accuracy against their number, and the logit lens on each latent."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from copra.report.sizes import pruned_units
from copra.schema.units import UNIT_NAMES
from copra.utils.files import METRICS, read_json, read_parquet

LABELS = ("recipe", "base", "pruning", "method", "order", "kind")
"""The columns that describe a recipe."""

SHOWN = 3
"""Number of tokens per latent in tables and figures."""


def accuracy_vs_latents(swept: Sequence[Mapping[str, Any]], evaluations: Path) -> pandas.DataFrame:
    """Return one row per recipe and number of latents: means over seeds (intervals are those of one seed).

    `swept` lists node and labels of the recipe, and the accuracy of guessing where it is known;
    `evaluations` holds one folder per node with latents.parquet and metrics.json, which has the sizes.
    """
    frames = []
    for one in swept:
        metrics = read_json(evaluations / one["node"] / METRICS)
        sizes = {key: metrics[key] for key in ("parameters", "checkpoint_bytes")} | metrics["units"]
        labels = {key: one[key] for key in LABELS} | {"chance": one.get("chance", math.nan)}
        frames.append(read_parquet(evaluations / one["node"] / "latents.parquet").assign(**labels, **sizes))
    rows = pandas.concat(frames, ignore_index=True)
    whole = ["n", *UNIT_NAMES, "parameters", "checkpoint_bytes"]
    numbers = [*whole, "accuracy", "low", "high", "flops", "depth", "chance"]
    keys = [*LABELS, "latents", "trained", "precision"]
    grouped = rows.groupby(keys, sort=False)[numbers].mean().reset_index()
    grouped = grouped.assign(**{name: grouped[name].round().astype("int64") for name in whole})
    return grouped.assign(pruned=pruned_units(grouped))


def latent_lens(nodes: Sequence[str], evaluations: Path) -> pandas.DataFrame:
    """Return one row per node, question and latent: its likeliest tokens and their percentages."""
    rows = []
    for node in nodes:
        frame = read_parquet(evaluations / node / "lens.parquet")
        for (_, latent), said in frame.groupby(["id", "latent"], sort=False):
            first = said.iloc[0]
            rows.append(
                {
                    "recipe": node,
                    "question": first["question"],
                    "latent": int(latent) + 1,
                    "precision": first["precision"],
                    "says": ", ".join(_said(said)),
                    "steps": " | ".join(first["steps"]),
                    "gold": first["gold"],
                    "generated": " | ".join(first["generated"].splitlines()),
                }
            )
    return pandas.DataFrame(rows)


def _said(said: pandas.DataFrame) -> list[str]:
    top = said.sort_values("rank").head(SHOWN)
    return [
        f"{visible(token)} {100 * share:.0f}%"
        for token, share in zip(top["token"], top["probability"], strict=True)
    ]


def visible(token: str) -> str:
    """Return a token with its control characters escaped and, if it has outer spaces, its spaces visible."""
    written = [sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in token]
    text = "".join(written)
    return text.replace(" ", "\u2423") if text.strip() != text else text
