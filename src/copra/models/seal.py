"""The seal of a checkpoint: the sha256 of each of its files, in the manifest, which has its own digest.

These files determine everything that a model computes and the meaning of its tokens, so a file that was
edited, swapped, truncated, added or removed must not be loaded silently.
"""

from collections.abc import Mapping
from pathlib import Path

from copra.models.pack import LOG, PACK
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256

READ_IF_THERE = (".json", ".jinja", ".model", "merges.txt", "vocab.txt")
"""Name endings of files that transformers reads if they exist: configs, adapters, tokenizers."""


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a checkpoint except manifest and pack, by relative path."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: file_sha256(folder / name) for name in sorted(found) if name not in (MANIFEST, PACK)}


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that a checkpoint has exactly the files of its manifest, given by path with their checksums.

    The training's log may be missing, since no model needs it and object storage does not transfer it.
    Files that are not in the manifest are ignored, except those that transformers would read.

    Raises:
        CopraError: a file is missing, changed or unexpected; names it and what to delete.
    """
    for name, sha256 in files.items():
        if name != LOG or (folder / name).exists():
            check_file(folder, name, sha256)
    for file in sorted([*folder.glob("[!.]*"), *folder.glob("additional_chat_templates/*")]):
        name = file.relative_to(folder).as_posix()
        if name.endswith(READ_IF_THERE) and name not in (MANIFEST, *files):
            raise CopraError(
                f"{file}: no file of this checkpoint, but one that transformers reads. Delete it, or move it "
                "elsewhere, then run again."
            )


def check_file(folder: Path, name: str, sha256: str) -> None:
    """Check that a file of a checkpoint exists and has its checksum.

    Raises:
        CopraError: it is missing or changed; names the file and what to delete.
    """
    file, again = folder / name, f"Delete {folder} and run snakemake again."
    if not file.is_file():
        raise CopraError(f"{file}: no such file. {again}")
    if file_sha256(file) != sha256:
        raise CopraError(
            f"{file}: not the file that {folder / MANIFEST} was written for (its checksum differs), so it "
            f"was cut short or changed. {again}"
        )
