"""Check for names that match `copra.schema.settings.Name` but cannot be file names or Snakemake wildcards."""

import re
from collections.abc import Iterable, Iterator

MOST_BYTES = 220
"""Maximum length of a model's name in bytes. File systems allow 255 per file name, of which a suffix such as
`.parquet` and the name of an unfinished file (`copra.utils.files.replacing`) need up to 26."""

RESERVED = ("none", "null")
"""Words that YAML and tables write for a missing value."""
SUFFIXES = (".json", ".parquet")
"""Suffixes of result files. A folder with such a suffix would be read as a file in its parent folder."""
PERIODIC = re.compile(r"(.+?)\1{19,}$")
"""Names that Snakemake refuses: if the end of a wildcard repeats a piece 20 times, it assumes a rule that
produces its own input (`snakemake.io.PeriodicityDetector`)."""


def name_problems(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each unusable name of `names`, all of one kind, with its problem and a remedy."""
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in RESERVED:
            yield name, "this name stands for nothing in tables and in YAML. Take another one."
        if name.endswith(SUFFIXES):
            yield name, f"a name must not end like a file, in {' or '.join(SUFFIXES)}. Take another one."
        if repeated := PERIODIC.search(name):
            yield (
                name,
                f"it ends in {repeated[1]!r} 20 times or more, which Snakemake refuses. Take another name.",
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            yield (
                name,
                f"differs from {other!r} by case alone, and macOS keeps both in the same files. Rename one.",
            )
