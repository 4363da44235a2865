"""A GPU a process: the first that no other process of copra holds.

Snakemake counts GPUs but hands none out, so two jobs beside each other would both compute on the first.
A process therefore takes one by a lock on a file, before torch is imported, and holds it until it ends,
however it ends: the system gives the lock back of a killed process too. Where n jobs share a GPU
(compute.jobs_per_gpu) each locks an n-th of the file's bytes, so that jobs that share in different numbers,
and jobs that want a GPU for themselves, keep out of each other's way too.
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
MOST_JOBS = 8
"""Jobs that may share one GPU."""
LOCKED_BYTES = 840
"""Bytes that stand for a whole GPU: every number up to `MOST_JOBS` divides them."""

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


def jobs_beside(jobs: int) -> int:
    """How many jobs share a GPU, of the number that the config allows: one where SLURM gave this job GPUs of
    its own."""
    return 1 if "SLURM_JOB_ID" in os.environ else jobs


def take_gpus(number: int = 1, jobs: int = 1) -> None:
    """Make the first free GPUs the only visible ones, and hold them until this process ends.

    `jobs` processes may hold a GPU side by side; the emptiest come first. While too few are free it waits and
    holds none. Nothing happens where there is no choice: without GPUs, and with CUDA_VISIBLE_DEVICES set to
    so many, as SLURM does for its jobs; but GPUs that are shared are locked then too.
    """
    names, jobs = gpus(), jobs_beside(jobs)
    if not names or (jobs == 1 and VISIBLE in os.environ and len(names) == number):
        return
    folder = _lock_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = _lock_first(number, names, folder, jobs)
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
        locks = _lock_first(number, names, folder, jobs)
    _held.extend(locks.values())
    os.environ[VISIBLE] = ",".join(locks)


def _lock_folder() -> Path:
    """A user's own, since nobody may open a file of somebody else's; and a SLURM job's own, since each job
    may number its GPUs from 0."""
    job = os.environ.get("SLURM_JOB_ID")
    return Path(tempfile.gettempdir()) / "-".join(["copra-gpus", str(os.getuid()), *([job] if job else [])])


def _lock_first(number: int, names: Sequence[str], folder: Path, jobs: int) -> dict[str, TextIO]:
    """Lock a part, one of `jobs`, of each of the first `number` GPUs that have one free; returns their locks
    by name, or nothing if there are too few."""
    locks: dict[str, TextIO] = {}
    length = LOCKED_BYTES // jobs
    for part in range(jobs):
        for name in names:
            if name in locks:
                continue
            # Names of parts of a GPU have slashes in them.
            file = (folder / name.replace("/", "_")).open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, part * length)
            except OSError:
                file.close()
                continue
            locks[name] = file
            if len(locks) == number:
                return locks
    for file in locks.values():
        file.close()
    return {}
