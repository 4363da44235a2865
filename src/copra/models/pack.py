"""Packs: one tar file of a checkpoint's other files than weights and manifest, for object storage.

Snakemake rules declare a checkpoint's weights and manifest. Its small files and a method's extra modules
depend on the kind of model, so no rule can declare them. A shared folder has them all the same, but object
storage keeps only declared files: a pack, which is declared, transfers them from one job to the next.
"""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST

PACK = "rest.tar"
LOG = "training.jsonl"
WANTED = "COPRA_PACK"
"""The environment variable that enables packs."""
APART = (MANIFEST, "model.safetensors", LOG, PACK)
"""Files that rules declare, which a pack leaves out."""


def enable_packs() -> None:
    """Set the environment variable that enables packs, in this process and those that it starts."""
    os.environ[WANTED] = "1"


def pack(folder: Path) -> None:
    """Write the pack of a checkpoint, if packs are enabled. Equal files give equal packs."""
    if WANTED not in os.environ:
        return
    with tarfile.open(folder / PACK, "w") as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name not in APART:
                member = tarfile.TarInfo(file.relative_to(folder).as_posix())
                member.size = file.stat().st_size
                with open(file, "rb") as handle:
                    tar.addfile(member, handle)


def unpack(folder: Path) -> None:
    """Extract a checkpoint's pack, if any, into its folder. Other processes may do so at the same time.

    Raises:
        CopraError: the pack cannot be read or extracted.
    """
    if not (folder / PACK).is_file():
        return
    try:
        with (
            tarfile.open(folder / PACK, "r:") as tar,
            tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary,
        ):
            for member in tar:
                _extract(tar, member, Path(temporary))
            for file in [path for path in Path(temporary).rglob("*") if path.is_file()]:
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)
    except (OSError, tarfile.TarError) as error:
        raise CopraError(
            f"{folder / PACK}: cannot be unpacked ({error}). Delete {folder} and run snakemake again."
        ) from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Extract a file into a folder.

    `extractall` has a filter for that, but not in Python 3.11.2, which Debian 12 has.

    Raises:
        tarfile.TarError: it is no file, or not one within the folder.
    """
    name = PurePosixPath(member.name)
    content = tar.extractfile(member) if member.isfile() else None
    if content is None or name.is_absolute() or ".." in name.parts:
        raise tarfile.TarError(f"it holds {member.name!r}, which is no file of a checkpoint")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "wb") as file:
        shutil.copyfileobj(content, file)
