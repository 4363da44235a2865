"""Data sets on the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from copra.utils.errors import CopraError


def load_splits(
    name: str, subsets: Sequence[str | None], revision: str | None, advice: str
) -> Mapping[str, Any]:
    """Return the splits of a data set by name; a split is a sequence of mappings from columns to values.

    `subsets` are configurations of the data set (None: its only one), of which the first that exists is read.
    `revision` is a branch, tag or commit. `advice` ends the message of an error.

    Raises:
        CopraError: the data set cannot be loaded.
    """
    # Its import takes 1 s.
    import datasets

    try:
        for subset in subsets[:-1]:
            try:
                return datasets.load_dataset(name, subset, revision=revision)
            except ValueError:
                continue
        return datasets.load_dataset(name, subsets[-1], revision=revision)
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise CopraError(
            f"hub_name: {name!r} could not be loaded from the Hub ({error}). Check the name, hub_subset, "
            f"hub_revision and the network, or {advice}."
        ) from error
