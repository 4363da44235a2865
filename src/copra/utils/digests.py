"""Digests of files by their content, kept beside the results so that they need not be computed again."""

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
"""Nanoseconds. A file that changed so recently may change again without another time: clocks of file systems
heartbeat every few milliseconds, on some every two seconds."""


def address_of(path: Path, sha256: Callable[[Path], str] = file_sha256) -> str:
    """The name of a local file or folder by its content: "sha256:" and 64 hexadecimal digits.

    Of a folder count the names and the contents of all files at any depth, but not of hidden ones.

    Raises:
        CopraError: there is nothing, or it cannot be read.
    """
    try:
        if not path.is_dir():
            return ADDRESS + sha256(path)
        return ADDRESS + digest({str(file.relative_to(path)): sha256(file) for file in files_below(path)})
    except OSError as error:
        raise CopraError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from None


def files_below(folder: Path) -> list[Path]:
    """All files of a folder at any depth but hidden ones, such as those of .git and .cache."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


class Digests:
    """What was computed from files of this machine, as long as they stay as they are.

    A file's sha256 is taken from the cache if its size, times and inode are the same. The cache may be lost,
    copied or read-only: digests are computed again then.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self._lasting: dict[str, Any] = {}
        self._fresh: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._lasting = dict(json.loads(cache.read_text()))

    def file(self, path: Path) -> str:
        """The sha256 of a file.

        Raises:
            OSError: it cannot be read.
        """
        state = _state(path)

        def compute() -> tuple[str, bool]:
            found = file_sha256(path)
            return found, _state(path) == state and time.time_ns() - max(state[1:3]) > RECENT

        return self._get(str(path.absolute()), state, compute)

    def address(self, path: Path) -> str:
        """What `address_of` returns.

        Raises:
            CopraError: there is nothing, or it cannot be read.
        """
        return address_of(path, self.file)

    def made(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, a JSON value that depends on nothing but `key`. One is kept per name."""
        return self._get(name, key, lambda: (make(), True))

    def _get(self, name: str, key: Any, compute: Callable[[], tuple[Any, bool]]) -> Any:
        """The value that is kept under a name for this key, or else a new one.

        `compute` returns it, and whether it may be kept beyond this process.
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
    """What changes when a file does: its size, the times of its content and of its entry in ns, its inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
