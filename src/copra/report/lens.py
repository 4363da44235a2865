"""The figure of the logit lens on the latents of a model."""

import textwrap

import pandas
from matplotlib.figure import Figure

from copra.report.latent_tables import visible
from copra.report.style import GRAY, styled, text_color_on


@styled
def lens_figure(frame: pandas.DataFrame) -> Figure:
    """Draw the logit lens of a node: one panel per question, one row per latent with its likeliest tokens.

    Tokens are shaded by probability. The title of a panel holds the question, its gold steps and answer, and
    the generated answer.
    """
    questions = [rows for _, rows in frame.groupby("id", sort=False)]
    latents = frame["latent"].nunique()
    figure = Figure(figsize=(6.8, len(questions) * (1.25 + 0.3 * latents)), layout="constrained")
    for axes, rows in zip(figure.subplots(len(questions), 1, squeeze=False)[:, 0], questions, strict=True):
        shares = rows.pivot(index="latent", columns="rank", values="probability")
        tokens = rows.pivot(index="latent", columns="rank", values="token")
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, x in [(y, x) for y in range(shares.shape[0]) for x in range(shares.shape[1])]:
            share = shares.iloc[y, x]
            axes.text(
                x,
                y,
                f"{visible(tokens.iloc[y, x])}  {100 * share:.0f}%",
                ha="center",
                va="center",
                fontsize=8,
                color=text_color_on(image, share),
                parse_math=False,
            )
        axes.set_yticks(range(len(shares)), [f"latent {index + 1}" for index in shares.index])
        axes.set_xticks([])
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_color(GRAY)
        axes.set_title(_title(rows.iloc[0]), fontsize=7.5, loc="left", parse_math=False)
    return figure


def _title(row: pandas.Series) -> str:
    given = " | ".join(row["generated"].splitlines())
    lines = [row["question"], f"gold: {' | '.join([*row['steps'], row['gold']])}", f"given: {given}"]
    return "\n".join("\n".join(textwrap.wrap(line, 100)[:3]) for line in lines)
