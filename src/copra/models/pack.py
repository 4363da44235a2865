"""What a checkpoint has beside weights and manifest, in one file: for object storage.

Snakemake knows of a checkpoint's weights and manifest. The small files beside them, and a method's parts,
come and go with the kind of model, so no rule can declare them; in a folder they are found all the same.
Object storage keeps only what is declared: a pack, which is, carries them from one job to the next.
"""

import os
import tarfile
import tempfile
from pathlib import Path

from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST

PACK = "rest.tar"
LOG = "training.jsonl"
WANTED = "COPRA_PACK"
"""The environment variable that asks for packs."""
APART = (MANIFEST, "model.safetensors", LOG, PACK)
"""Files that rules declare."""


def put_pack_beside_checkpoints() -> str:
    """Have the verbs that this process starts write packs; returns a pack's name."""
    os.environ[WANTED] = "1"
    return PACK


def pack(folder: Path) -> None:
    """Write the pack of a checkpoint, if packs are asked for. Equal files give equal packs."""
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
    """Put the files of a checkpoint's pack beside it, if it has a pack. Other processes may do the same.

    Raises:
        CopraError: the pack is not whole.
    """
    if not (folder / PACK).is_file():
        return
    try:
        with (
            tarfile.open(folder / PACK, "r:") as tar,
            tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary,
        ):
            tar.extractall(temporary, filter="data")
            for file in [path for path in Path(temporary).rglob("*") if path.is_file()]:
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)
    except (OSError, tarfile.TarError) as error:
        raise CopraError(
            f"{folder / PACK}: cannot be unpacked ({error}). Delete {folder} and run snakemake again."
        ) from error
