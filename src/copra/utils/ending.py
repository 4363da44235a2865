"""End jobs with their Snakemake, even if that is killed; holds the functions that end a process gracefully.

A shell runs between the two and outlives Snakemake, so that a job cannot detect the end by its parent
process. Therefore Snakemake stores its process in the environment of its jobs, which watch it. A job on a
cluster is started by a Snakemake on its own node and ends with that one, not with the Snakemake that
submitted it.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from copra.utils.processes import token_of

VARIABLE = "COPRA_SNAKEMAKE"

_in_order: list[Callable[[], None]] = []
"""Functions that end the current work of this process gracefully."""


def name_snakemake() -> None:
    """Make the jobs that this process starts end with it. Linux only; elsewhere this does nothing."""
    with contextlib.suppress(OSError):
        os.environ[VARIABLE] = this_process()


def this_process() -> str:
    """Return a name of this process that no other one has, now or later, here or elsewhere. Linux only.

    Raises:
        OSError: there is none.
    """
    return f"{_numbering()} {token_of(os.getpid())}"


def has_ended(process: str) -> bool:
    """Return True if the process of this name has provably ended; False if it may run, here or elsewhere."""
    numbering, _, token = process.rpartition(" ")
    if not token or numbering != _numbering():
        return False
    try:
        return token_of(int(token.split(".")[0])) != token
    except (ProcessLookupError, FileNotFoundError):
        return True


def end_with_snakemake() -> None:
    """End this process with the Snakemake that started it, by `ends_by` or otherwise by SIGTERM.

    Does nothing without a Snakemake, or if it runs on another machine or in another container.
    """
    numbering, _, token = os.environ.get(VARIABLE, "").rpartition(" ")
    if not token or numbering != _numbering():
        return
    number = int(token.split(".")[0])
    try:
        snakemake = os.pidfd_open(number)
        # Compared after opening, so that the number cannot pass to another process in between.
        lives = token_of(number) == token
    except (ProcessLookupError, FileNotFoundError):
        lives = False
    if not lives:
        _end()
        return

    def watch() -> None:
        poll = select.poll()
        poll.register(snakemake, select.POLLIN)
        poll.poll()
        _end()

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def ends_by(ask: Callable[[], None]) -> Iterator[None]:
    """Context in which this process ends with its Snakemake by a call of `ask` in another thread.

    A signal could be the second one, which ends a training at once.
    """
    _in_order.append(ask)
    try:
        yield
    finally:
        _in_order.remove(ask)


def _end() -> None:
    print(
        "copra: the Snakemake that started this job has ended: the job ends too", file=sys.stderr, flush=True
    )
    for ask in _in_order:
        ask()
    if not _in_order:
        os.kill(os.getpid(), signal.SIGTERM)


def _numbering() -> str | None:
    """Return an identifier of this boot and PID namespace, within which process numbers are comparable."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None
