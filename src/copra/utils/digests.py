"""Content digests of files, cached beside the results."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from copra.utils.errors import CopraError
from copra.utils.files import digest, file_sha256, write_json

ADDRESS = "sha256:"
RECENT = 2_000_000_000
"""Age in nanoseconds below which a file may change again without a new modification time: file system clocks
advance every few milliseconds, some only every two seconds."""


def address_of(path: Path, sha256: Callable[[Path], str] = file_sha256) -> str:
    """Return the content address of a local file or folder: "sha256:" and 64 hexadecimal digits.

    The address of a folder covers the names and contents of all files at any depth, except hidden ones.

    Raises:
        CopraError: the path does not exist or cannot be read.
    """
    try:
        if not path.is_dir():
            return ADDRESS + sha256(path)
        return ADDRESS + digest({str(file.relative_to(path)): sha256(file) for file in files_below(path)})
    except OSError as error:
        raise CopraError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from None


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder at any depth, except hidden ones such as those of .git and .cache."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


class Digests:
    """Values computed from files of this machine, cached until the files change.

    The sha256 of a file is read from the cache if its size, times and inode are unchanged. If the cache is
    lost, copied or read-only, digests are computed again.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self._lasting: dict[str, Any] = {}
        self._fresh: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._lasting = dict(json.loads(cache.read_text()))

    def file(self, path: Path) -> str:
        """Return the sha256 of a file.

        Raises:
            OSError: the file cannot be read.
        """
        state = _state(path)

        def compute() -> tuple[str, bool]:
            found = file_sha256(path)
            return found, _state(path) == state and time.time_ns() - max(state[1:3]) > RECENT

        return self._get(str(path.absolute()), state, compute)

    def address(self, path: Path) -> str:
        """Return `address_of(path)`, with cached file digests.

        Raises:
            CopraError: the path does not exist or cannot be read.
        """
        return address_of(path, self.file)

    def made(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """Return the JSON value of `make()`, which depends on `key` alone. One value per name is cached."""
        return self._get(name, key, lambda: (make(), True))

    def _get(self, name: str, key: Any, compute: Callable[[], tuple[Any, bool]]) -> Any:
        """Return the cached value of a name if its key matches, otherwise compute and cache it.

        `compute` returns the value, and True if it may be cached beyond this process.
        """
        for kept in (self._fresh, self._lasting):
            match kept.get(name):
                case [known, value] if known == key:
                    return value
        value, lasts = compute()
        self._fresh[name] = [key, value]
        if lasts:
            self._lasting[name] = [key, value]
            with contextlib.suppress(CopraError):
                write_json(self.cache, self._lasting)
        return value


def _state(path: Path) -> list[int]:
    """Return a file's state, which changes with its content: size, mtime and ctime in ns, inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
