"""Figures of latents: accuracy against their number, accuracy by their source, and the logit lens."""

import textwrap

import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from copra.report.latent_tables import visible
from copra.report.style import COLORS, DENSE, GRAY, MARKERS, assign, styled
from copra.schema.latents import LATENT_SOURCES


@styled
def latents_figure(table: pandas.DataFrame) -> Figure:
    """Draw accuracy with its interval against the number of latents, one line per recipe.

    A ring marks the number of latents in training.
    """
    recipes = list(dict.fromkeys(table["recipe"]))
    figure = Figure(figsize=(6.8, 3.8 + 0.1 * len(recipes)), layout="constrained")
    axes = figure.subplots()
    colors, markers = assign(recipes, COLORS), assign(recipes, MARKERS)
    for index, recipe in enumerate(recipes):
        rows = table[table["recipe"] == recipe].sort_values("latents")
        # Shifted a little, so that intervals at the same number do not overlap.
        x = rows["latents"] + 0.24 * ((index + 0.5) / len(recipes) - 0.5)
        y, low, high = (100 * rows[name] for name in ("accuracy", "low", "high"))
        axes.errorbar(
            x,
            y,
            yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)],
            color=colors[recipe],
            marker=markers[recipe],
            markersize=5,
            elinewidth=0.9,
            label=recipe.replace("+", " + "),
        )
        here = rows["trained"].to_numpy(dtype=bool)
        axes.plot(x[here], y[here], "o", markersize=11, mfc="none", mec=colors[recipe], mew=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="latents at evaluation (ring: as trained)", ylabel="accuracy (%), 95% interval over questions"
    )
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def sources_figure(table: pandas.DataFrame) -> Figure:
    """Draw accuracy with its interval for each source of latents, one row per recipe, means over seeds.

    Each source has its own color and marker. Only `own` is filled, so that it stands out in gray too.
    """
    rows = table[table["seed"] == "all"]
    recipes, sources = list(dict.fromkeys(rows["recipe"])), list(dict.fromkeys(rows["source"]))
    figure = Figure(figsize=(6.8, 1.3 + (0.25 + 0.13 * len(sources)) * len(recipes)), layout="constrained")
    axes = figure.subplots()
    colors, markers = assign(LATENT_SOURCES, (DENSE, *COLORS)), assign(LATENT_SOURCES, MARKERS)
    for index, source in enumerate(sources):
        of_source = rows[rows["source"] == source]
        # Side by side within the row of a recipe, so that intervals do not overlap.
        y = of_source["recipe"].map(recipes.index) + 0.7 * ((index + 0.5) / len(sources) - 0.5)
        x, low, high = (100 * of_source[name] for name in ("accuracy", "low", "high"))
        axes.errorbar(
            x,
            y,
            xerr=[(x - low).clip(lower=0), (high - x).clip(lower=0)],
            linestyle="",
            color=colors[source],
            marker=markers[source],
            markersize=5.5,
            markerfacecolor=colors[source] if source == "own" else "white",
            elinewidth=0.9,
            label=source.replace("_", " "),
        )
    axes.set_yticks(range(len(recipes)), [recipe.replace("+", " + ") for recipe in recipes])
    axes.set_ylim(len(recipes) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    for border in range(1, len(recipes)):
        axes.axhline(border - 0.5, color=GRAY, linewidth=0.6, linestyle=":")
    axes.set_xlabel("accuracy (%), 95% interval over questions")
    figure.legend(title="latents from", loc="outside lower center", ncols=len(sources))
    return figure


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
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, x in [(y, x) for y in range(shares.shape[0]) for x in range(shares.shape[1])]:
            share = shares.iloc[y, x]
            axes.text(
                x,
                y,
                f"{visible(tokens.iloc[y, x])}  {100 * share:.0f}%",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.55 else "#333333",
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
