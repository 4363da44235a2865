"""Names that are legal for `copra.schema.settings.Name` and still cannot be the names of files or of
Snakemake's wildcards."""

import re
from collections.abc import Iterable, Iterator

MOST_BYTES = 220
"""Bytes of a model's name. File systems allow 255 in a file's name, of which up to 26 go into a suffix such
as `.parquet` and into the name of an unfinished file (`copra.utils.files.replacing`)."""

RESERVED = ("none", "null")
"""What YAML and tables write for nothing."""
SUFFIXES = (".json", ".parquet")
"""A path that ends so is taken for a file in the folder that is meant."""
PERIODIC = re.compile(r"(.+?)\1{19,}$")
"""Snakemake takes a value whose end repeats a piece 20 times for a rule that makes its own input
(`snakemake.io.PeriodicityDetector`)."""


def name_problems(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names among those of one kind that cannot be used, each with what is wrong and what to do."""
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
