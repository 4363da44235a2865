"""A GPU a process: the first that no other process of copra holds (no torch).

Snakemake counts GPUs but hands none out, so two jobs beside each other would both compute on the first.
A process therefore takes one by a lock (flock) on a file, before torch is imported, and holds it until it
ends, however it ends: the system gives the lock back of a killed process too.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")
SECONDS_BETWEEN_TRIES = 1.0

# Open as long as the process lives: closing a file would give its lock back.
_held: list[TextIO] = []


@cache
def gpus_of_machine() -> tuple[str, ...]:
    """The numbers of this machine's NVIDIA GPUs.

    By nvidia-smi, which leaves out those that a container does not get, or by the driver's own folder.
    """
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    else:
        count = len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0
    return tuple(map(str, range(count)))


def gpus() -> tuple[str, ...]:
    """The GPUs to choose from, named as in CUDA_VISIBLE_DEVICES: those that it lists, or all of the machine
    where it is not set. For a SLURM job SLURM has chosen: it sets CUDA_VISIBLE_DEVICES, or gave no GPU."""
    if VISIBLE in os.environ:
        return tuple(name.strip() for name in os.environ[VISIBLE].split(",") if name.strip())
    return () if "SLURM_JOB_ID" in os.environ else gpus_of_machine()


def take_gpus(number: int = 1) -> None:
    """Make the first free GPUs the only visible ones, and hold them until this process ends.

    While too few are free it waits and holds none. Nothing happens where there is no choice: without GPUs,
    and with CUDA_VISIBLE_DEVICES set to so many, as SLURM does for its jobs.
    """
    names = gpus()
    if not names or (VISIBLE in os.environ and len(names) == number):
        return
    folder = _lock_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = _lock_first(number, names, folder)
    if not locks:
        wanted = "a GPU" if number == 1 else f"{number} GPUs"
        listed = ", ".join(names)
        print(
            f"waiting for {wanted}: others hold too many of {listed} (locks are in {folder})",
            file=sys.stderr,
            flush=True,
        )
    while not locks:
        time.sleep(SECONDS_BETWEEN_TRIES)
        locks = _lock_first(number, names, folder)
    _held.extend(locks.values())
    os.environ[VISIBLE] = ",".join(locks)


def _lock_folder() -> Path:
    """A user's own, since nobody may open a file of somebody else's; and a SLURM job's own, since each job
    may number its GPUs from 0."""
    job = os.environ.get("SLURM_JOB_ID")
    return Path(tempfile.gettempdir()) / "-".join(["copra-gpus", str(os.getuid()), *([job] if job else [])])


def _lock_first(number: int, names: Sequence[str], folder: Path) -> dict[str, TextIO]:
    """Lock the first `number` GPUs that are free; returns their locks by name, or nothing if there are too
    few."""
    locks: dict[str, TextIO] = {}
    for name in names:
        # Names of parts of a GPU have slashes in them.
        file = (folder / name.replace("/", "_")).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        locks[name] = file
        if len(locks) == number:
            return locks
    for file in locks.values():
        file.close()
    return {}
