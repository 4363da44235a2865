"""Tables of latents: accuracy against their number, and the logit lens on each latent."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas

from copra.utils.files import read_parquet

SHOWN = 3
"""Number of tokens per latent in tables and figures."""


def accuracy_vs_latents(swept: Sequence[Mapping[str, str]], evaluations: Path) -> pandas.DataFrame:
    """Return one row per recipe and number of latents: means over seeds (intervals are those of one seed).

    `swept` lists recipe and node; `evaluations` holds one folder per node with latents.parquet.
    """
    frames = [
        read_parquet(evaluations / one["node"] / "latents.parquet").assign(recipe=one["recipe"])
        for one in swept
    ]
    rows = pandas.concat(frames, ignore_index=True)
    numbers = ["n", "accuracy", "low", "high", "flops", "depth"]
    grouped = (
        rows.groupby(["recipe", "latents", "trained", "precision"], sort=False)[numbers].mean().reset_index()
    )
    return grouped.assign(n=grouped["n"].round().astype("int64"))


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
