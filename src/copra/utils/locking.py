"""Locks on the state of jobs: one process at a time, on this machine and across machines.

While a job uses a state folder `state/<key>`, a file `state/<key>.lock` beside it describes the job, as JSON.
On one machine, the operating system holds the lock (filelock's FileLock) and frees it when the job ends in
any way, even if a fork of it lives on. Machines that share the folder may not share locks (NFS with local
locks), and some file systems have none. Therefore the job touches the file every 15 s, and a file of another
machine is valid until it has not been touched for 150 s. Clocks may differ by a minute.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
    # A shared lock, which filelock lacks, needs no write permission and is no holder to other readers.
    file = file_of(state)
    with contextlib.suppress(OSError), open(file) as handle:
        return _holder(file, _is_taken(lambda: fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)))
    return None


class _Lock:
    """A lock of this process: its file, the record in it, and the system's lock, if there is one."""

    def __init__(self, file: Path, record: dict[str, Any], guard: FileLock):
        self.file, self.record, self.guard = file, record, guard
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._give_signs, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Remove the file, then free the lock, so that no waiting job locks a file about to be removed."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self.file) == self.record:
                self.file.unlink()
        self.guard.release()

    def _give_signs(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_SIGNS):
            with contextlib.suppress(OSError):
                found = _read(self.file)
                if found is not None and found != self.record:
                    # Possible only without flock, after this process was suspended: it must stop writing.
                    print(f"{self.file}: taken by {_in_words(found)}. This job ends.", file=sys.stderr)
                    os._exit(1)
                os.utime(self.file)


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
        lock, found = _try(file, record)
        if lock is not None:
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
    if holder and holder["output"] == record["output"] and _stamp(output) not in (None, before):
        print(f"{output}: made by {_in_words(holder)} meanwhile", file=sys.stderr)
        lock.release()
        return None, True
    return lock, False


def _try(file: Path, record: dict[str, Any]) -> tuple[_Lock | None, dict[str, Any] | None]:
    """Try to take the lock; return it and None, or None and the record of its holder.

    Both are None if the file was removed meanwhile.
    """
    guard = FileLock(file, fallback_to_soft=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        holder = _holder(file, _is_taken(lambda: guard.acquire(blocking=False)))
        if holder is None:
            # Never a new file, which would not be the locked one.
            with open(file, "r+") as handle:
                handle.truncate()
                handle.write(json.dumps(record))
            return _Lock(file, record, guard), None
    except FileNotFoundError:
        holder = None
    except OSError as error:
        guard.release()
        raise CopraError(
            f"{file}: could not be written ({error.strerror}). Free some space or check the permissions, "
            "then run again: what was finished before is kept."
        ) from error
    guard.release()
    return None, holder


def _is_taken(lock: Callable[[], object]) -> bool | None:
    """Call `lock`; return True if a process of this machine has the lock, None if there are no locks."""
    try:
        lock()
    except (Timeout, BlockingIOError):
        return True
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return None
    return False


def _holder(file: Path, taken: bool | None) -> dict[str, Any] | None:
    """Return the record of the job that has the lock, {} if it is not written yet; None if no job has it."""
    found = _read(file)
    if taken:
        return found or {}
    if found is None:
        return None
    if found["host"] != socket.gethostname():
        lives = time.time() - file.stat().st_mtime < SILENT_SECONDS
    else:
        lives = taken is None and processes.is_alive(found["process"], found["started"])
    return found if lives else None


def _read(file: Path) -> dict[str, Any] | None:
    """Return the record in a lock file, None if it is incomplete."""
    try:
        found = json.loads(file.read_text())
        return found if {"host", "process", "node", "output", "started"} <= found.keys() else None
    except (ValueError, AttributeError):
        return None


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
