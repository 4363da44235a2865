"""Cache of results on disk, so that a killed job need not compute them again.

diskcache and joblib do not serve: they pickle, and nothing that is read again may be a pickle.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import digest


class ResultCache:
    """Values by name in a file of JSON lines; an unfinished line of a killed process is ignored.

    The file's folder below `state` is named after `key`, which holds all that the values depend on. Each
    process of a job writes its own file, and reads the files of all. Several jobs may use one cache at the
    same time, as each appends whole lines.
    """

    def __init__(self, state: Path, kind: str, key: Any):
        self.folder = state / digest([kind, key])[:16]
        names = [kind, *([str(processes.rank())] if processes.rank() else []), "jsonl"]
        self.kind = kind
        self.file = self.folder / ".".join(names)

    @cached_property
    def known(self) -> dict[str, dict[str, Any]]:
        """The values by name, as read from disk at the first access."""
        known: dict[str, dict[str, Any]] = {}
        for file in self.folder.glob(f"{self.kind}.*jsonl"):
            for line in file.read_text(errors="replace").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):
                    record = json.loads(line)
                    if isinstance(record, dict) and "name" in record:
                        known[record.pop("name")] = record
        return known

    def get_or_compute(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the cached value of a name, computing and storing it on a miss."""
        if name not in self.known:
            value = find()
            self._append(json.dumps({"name": name, **value}))
            self.known[name] = value
        return self.known[name]

    def delete(self) -> None:
        """Remove the folder, once the result that needed the values is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, line: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.file, "ab+") as handle:
                with contextlib.suppress(OSError):  # some file systems have no locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                size = handle.seek(0, os.SEEK_END)
                # A killed process may have left a part of a line.
                unfinished = size and os.pread(handle.fileno(), 1, size - 1) != b"\n"
                handle.write((b"\n" if unfinished else b"") + line.encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise CopraError(
                f"{self.file}: could not be written ({error.strerror}). Free some space or check the "
                "permissions, then run again: what was found before is kept."
            ) from error
