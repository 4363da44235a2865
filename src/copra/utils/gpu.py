"""Assignment of GPUs to processes: each takes the first that no other process of copra holds.

Snakemake counts GPUs but does not assign them, so two concurrent jobs would both compute on the first.
Therefore a process locks a file for its GPU before torch is imported, and holds the lock until it ends; the
operating system also frees the locks of killed processes. If n jobs share a GPU (compute.jobs_per_gpu), each
locks an n-th of the file's bytes, so that jobs with different n, and jobs that need a whole GPU, do not
overlap either.
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
"""Maximum number of jobs per GPU."""
LOCKED_BYTES = 840
"""Bytes that represent a whole GPU: divisible by every number up to `MOST_JOBS`."""

# Open until the process ends: closing a file would release its lock.
_held: list[TextIO] = []


@cache
def gpus_of_machine() -> tuple[str, ...]:
    """Return the indices of this machine's NVIDIA GPUs.

    They come from nvidia-smi, which omits GPUs that a container has no access to, or from the driver's
    folder.
    """
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    else:
        count = len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0
    return tuple(map(str, range(count)))


def gpus() -> tuple[str, ...]:
    """Return the available GPUs, named as in CUDA_VISIBLE_DEVICES: those listed there, or all.

    SLURM sets CUDA_VISIBLE_DEVICES for its jobs; a SLURM job without it has no GPU.
    """
    if VISIBLE in os.environ:
        return tuple(name.strip() for name in os.environ[VISIBLE].split(",") if name.strip())
    return () if "SLURM_JOB_ID" in os.environ else gpus_of_machine()


def jobs_beside(jobs: int) -> int:
    """Return the number of jobs per GPU: `jobs`, or 1 under SLURM, where each has its own GPUs."""
    return 1 if "SLURM_JOB_ID" in os.environ else jobs


def take_gpus(number: int = 1, jobs: int = 1) -> None:
    """Make the first `number` free GPUs the only visible ones, and hold them until this process ends.

    Up to `jobs` processes may hold a GPU at once; the least used GPUs come first. While too few are free, it
    waits and holds none. Does nothing if there is no choice: without GPUs, and if CUDA_VISIBLE_DEVICES lists
    exactly `number`, as in SLURM jobs; but shared GPUs are locked in this case too.
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
    """Return the folder of lock files.

    One per user, since users cannot open each other's files; and one per SLURM job, since each job may number
    its GPUs from 0.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return Path(tempfile.gettempdir()) / "-".join(["copra-gpus", str(os.getuid()), *([job] if job else [])])


def _lock_first(number: int, names: Sequence[str], folder: Path, jobs: int) -> dict[str, TextIO]:
    """Lock one of `jobs` parts of each of the first `number` GPUs with a free part.

    Return their locks by name, or an empty dict if there are too few.
    """
    locks: dict[str, TextIO] = {}
    length = LOCKED_BYTES // jobs
    for part in range(jobs):
        for name in names:
            if name in locks:
                continue
            # Names of MIG parts of a GPU contain slashes.
            file = (folder / name.replace("/", "_")).open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, part * length)
            except OSError:
                file.close()
                continue
            locks[name] = file
            if len(locks) == number:
                return locks
    for lock in locks.values():
        lock.close()
    return {}
