"""Locks on the state of jobs: one process at a time, on this machine and across machines.

While a job uses a state folder `state/<key>`, a file `state/<key>.lock` beside it describes the job, as JSON.
On one machine, the operating system holds the lock (flock) and frees it when the job ends in any way.
Machines that share the folder may not share locks (NFS with local locks), and some file systems have none.
Therefore the job touches the file every 15 s, and a file of another machine is valid until it has not been
touched for 150 s. Clocks may differ by a minute.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from copra.utils import processes
from copra.utils.errors import CopraError

SUFFIX = ".lock"
SECONDS_BETWEEN_TRIES = 0.5
SECONDS_BETWEEN_SIGNS = 15.0
SILENT_SECONDS = 150.0
"""Time without a touch after which a job of another machine has ended. NFS shows touches up to 60 s late."""
SECONDS_BETWEEN_MESSAGES = 600.0
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""Errors of flock on file systems that have no locks."""


@contextlib.contextmanager
def hold(state: Path, node: str, output: Path) -> Iterator[bool]:
    """Context with exclusive use of the folder `state`; waits first for a job that uses it.

    Yields True if that job has meanwhile written the file `output`: it had the same state, and so the same
    settings and inputs, and nothing needs to be done. All processes of a job must call this; the first one
    holds the lock. There is no timeout; signals end the wait as usual.

    Raises:
        CopraError: the lock file cannot be written.
    """
    lock, made = None, False
    if processes.rank() == 0:
        lock, made = _wait_for(file_of(state), node, output)
    try:
        yield processes.all_gather(made)[0]
    finally:
        if lock is not None:
            lock.release()


def file_of(state: Path) -> Path:
    """Return the lock file of a state folder."""
    return state.with_name(state.name + SUFFIX)


def holder_of(state: Path) -> dict[str, Any] | None:
    """Return the job that uses a state folder: `host`, `process`, `node`, `output` and `started` (Unix time).

    None if there is no such job.
    """
    with contextlib.suppress(OSError), open(file_of(state)) as handle:
        return _holder(handle.fileno(), _flock(handle.fileno(), fcntl.LOCK_SH))
    return None


class _Lock:
    """A lock of this process: its file, open as `descriptor`, and the record in it."""

    def __init__(self, file: Path, descriptor: int, record: dict[str, Any]):
        self.file, self.descriptor, self.record = file, descriptor, record
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._give_signs, daemon=True)
        _held.add(descriptor)
        self._thread.start()

    def release(self) -> None:
        """Remove the file, then free the lock, so that no waiting job locks a file about to be removed."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self.descriptor) == self.record:
                self.file.unlink()
        _held.discard(self.descriptor)
        os.close(self.descriptor)

    def _give_signs(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_SIGNS):
            with contextlib.suppress(OSError):
                found = _read(self.descriptor)
                if found is not None and found != self.record:
                    # Possible only without flock, after this process was suspended: it must stop writing.
                    print(f"{self.file}: taken by {_in_words(found)}. This job ends.", file=sys.stderr)
                    os._exit(1)
                os.utime(self.descriptor)


_held: set[int] = set()
"""The open lock files of this process."""


def _close_in_fork() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# The system frees a lock when no process has the file open, and a fork may outlive the job.
os.register_at_fork(after_in_child=_close_in_fork)


def _wait_for(file: Path, node: str, output: Path) -> tuple[_Lock | None, bool]:
    """Wait for the lock; return (lock, False), or (None, True) if its last holder wrote `output`."""
    record = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "node": node,
        "output": str(output.absolute()),
        "started": time.time(),
    }
    before, holder, told = _stamp(output), None, -math.inf
    while True:
        descriptor, found = _try(file, record)
        if descriptor is not None:
            break
        if found is None:
            continue
        holder = found or holder
        if time.monotonic() - told >= SECONDS_BETWEEN_MESSAGES:
            told = time.monotonic()
            print(
                f"{node}: waiting for {_in_words(found)}, which uses {file.with_suffix('')} too. End that "
                "process if it is not wanted: this one goes on from what it saved.",
                file=sys.stderr,
            )
        time.sleep(SECONDS_BETWEEN_TRIES)
    lock = _Lock(file, descriptor, record)
    if holder and holder["output"] == record["output"] and _stamp(output) not in (None, before):
        print(f"{output}: made by {_in_words(holder)} meanwhile", file=sys.stderr)
        lock.release()
        return None, True
    return lock, False


def _try(file: Path, record: dict[str, Any]) -> tuple[int | None, dict[str, Any] | None]:
    """Try to take the lock; return its open file and None, or None and the record of its holder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(descriptor, fcntl.LOCK_EX)
            holder = _holder(descriptor, locked)
            # A lock on a file that was removed after it was opened is void.
            if holder is not None or not _is_at(descriptor, file):
                os.close(descriptor)
                return None, holder
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise CopraError(
            f"{file}: could not be written ({error.strerror}). Free some space or check the permissions, "
            "then run again: what was finished before is kept."
        ) from error
    return descriptor, None


def _flock(descriptor: int, kind: int) -> bool | None:
    """Return True if the lock is acquired, False if another process has it, None if there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return None
    return True


def _holder(descriptor: int, locked: bool | None) -> dict[str, Any] | None:
    """Return the record of the job that has the lock, {} if it is not written yet; None if no job has it."""
    found = _read(descriptor)
    if locked is False:
        return found or {}
    if found is None:
        return None
    if found["host"] != socket.gethostname():
        lives = time.time() - os.fstat(descriptor).st_mtime < SILENT_SECONDS
    else:
        lives = locked is None and processes.is_alive(found["process"], found["started"])
    return found if lives else None


def _read(descriptor: int) -> dict[str, Any] | None:
    """Return the record in a lock file; None if it is missing or incomplete."""
    try:
        found = json.loads(os.pread(descriptor, 65536, 0))
        return found if {"host", "process", "node", "output", "started"} <= found.keys() else None
    except (ValueError, AttributeError):
        return None


def _is_at(descriptor: int, file: Path) -> bool:
    """True if an open file is the file at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return (inode, mtime in ns), which changes when a file is replaced; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _in_words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
    return f"process {holder['process']} of {holder['host']} ({holder['node']}, since {since})"
