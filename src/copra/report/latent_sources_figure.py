"""The figure of accuracy by the source of the latents."""

import pandas
from matplotlib.figure import Figure

from copra.report.style import COLORS, DENSE, GRAY, MARKERS, assign, styled
from copra.schema.latents import LATENT_SOURCES


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
