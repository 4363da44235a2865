"""Snakemake's locks on a folder: removed where the run that took them has provably ended, as after a kill.

Snakemake does not write who holds a lock, so that a user has to decide. A run of copra notes its process and
its locks.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from copra.utils.ending import has_ended, this_process
from copra.utils.errors import CopraError
from copra.utils.files import read_json, write_json

LOCKS = Path(".snakemake") / "locks"
"""Folder of Snakemake's locks on the working folder."""
NOTES = LOCKS.parent / "copra-runs"


def note_locks(locks: Iterable[str]) -> None:
    """Note that this process holds locks of the working folder, given as the paths of their files."""
    with contextlib.suppress(OSError):
        NOTES.mkdir(parents=True, exist_ok=True)
        names = [Path(lock).name for lock in locks]
        write_json(NOTES / f"{os.getpid()}.json", {"process": this_process(), "locks": names})


def free_locks() -> list[Path]:
    """Remove locks of the working folder whose runs have ended, and their notes; return the locks."""
    freed = []
    for note in sorted(NOTES.glob("*.json")):
        with contextlib.suppress(OSError, CopraError, KeyError):
            found, noted = read_json(note), note.stat().st_mtime
            if has_ended(found["process"]):
                for lock in (LOCKS / Path(name).name for name in found["locks"]):
                    # A newer file of this name is the lock of a later run.
                    if lock.is_file() and lock.stat().st_mtime <= noted:
                        lock.unlink()
                        freed.append(lock)
                note.unlink()
    return freed
