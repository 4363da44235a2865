"""The sources of latent inputs that `evaluation.latents_from` names."""

from collections.abc import Sequence
from typing import Literal, get_args

LatentSource = Literal["own", "other", "mean", "zeros", "drop_last"]
"""Source of the inputs at latent positions. own: as trained. other: those of another question. mean: the mean
over all questions at each position. zeros: zero vectors. drop_last: own, without the last latent."""

LATENT_SOURCES: tuple[LatentSource, ...] = get_args(LatentSource)


def with_own(sources: Sequence[LatentSource]) -> list[LatentSource]:
    """Return `own` and these sources, each once, in the order of `LATENT_SOURCES`."""
    return [source for source in LATENT_SOURCES if source in ("own", *sources)]
