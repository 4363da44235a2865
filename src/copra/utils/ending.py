"""Jobs end with the Snakemake that started them, though that be killed with SIGKILL.

A shell stands between the two and outlives Snakemake, so a job's parent does not tell: Snakemake names itself
in the environment of its jobs, and they watch that process. A job of a cluster is started by a Snakemake
beside it on its node and ends with that one; the Snakemake that submitted it may go.
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
"""What ends the work of this process in order, while there is such work."""


def name_snakemake() -> None:
    """Let the jobs that this process starts end with it. Linux only; elsewhere nothing happens."""
    with contextlib.suppress(OSError):
        os.environ[VARIABLE] = f"{_numbering()} {token_of(os.getpid())}"


def end_with_snakemake() -> None:
    """End this process with the Snakemake that started it: by `ends_by`, and otherwise by SIGTERM.

    Nothing happens without a Snakemake, or where it is a process of another machine or container.
    """
    numbering, _, token = os.environ.get(VARIABLE, "").rpartition(" ")
    if not token or numbering != _numbering():
        return
    number = int(token.split(".")[0])
    try:
        snakemake = os.pidfd_open(number)
        # Looked at while its number cannot be given to another process.
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
    """Within, this process ends by `ask` with its Snakemake, from another thread, and not by a signal: that
    could be the second one, which ends a training at once."""
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
    """What makes the number of a process one of this machine since its start, and of this container."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None
