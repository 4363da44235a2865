"""Several processes for one job: copra starts itself several times, and each process does a part of the work.

torch's own launcher (torchrun's) starts and monitors them, and sets the rank of each in its environment.
torch is imported only where it is needed.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil

from copra.utils.errors import CopraError
from copra.utils.gpu import gpus, take_gpus

LAUNCHER = "COPRA_LAUNCHER"

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the index of this process, from 0; only process 0 writes results."""
    return int(os.environ.get("RANK", "0"))


def shard(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of some items: every `world_size()`-th, from its rank on."""
    return items[rank() :: world_size()]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, by rank; all processes must call it.

    Raises:
        CopraError: another process has ended.
    """
    if world_size() == 1:
        return [value]
    from torch import distributed

    init()
    values: list[Any] = [None] * world_size()
    try:
        distributed.all_gather_object(values, value)
    except RuntimeError as error:
        raise CopraError(
            f"another process of this job has ended: what it says beside this tells why ({error})"
        ) from None
    return values


def wait() -> None:
    """Wait until all processes have called this, so that their earlier writes are done."""
    all_gather(None)


def init() -> None:
    """Initialize the process group, unless it is initialized already."""
    from torch import distributed

    if world_size() > 1 and not distributed.is_initialized():
        # Others may wait long for one that writes a large checkpoint. If one dies, the launcher ends all.
        distributed.init_process_group("gloo", timeout=timedelta(days=1))


def shutdown() -> None:
    """Destroy the process group, after all processes have called this."""
    if world_size() == 1 or "torch" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def token_of(pid: int) -> str:
    """Return a process's number and start time, which together are unique."""
    # The program's name, in brackets, may contain spaces and brackets.
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}.{start}"


def is_alive(number: int, started: float) -> bool:
    """True if a process with this number runs on this machine and began before the Unix time `started`.

    A process that began later only reuses the number.
    """
    try:
        return psutil.Process(number).create_time() < started + 1
    except psutil.Error:
        return False


def end_with_launcher() -> None:
    """Make this process end with its launcher, even if that is killed by SIGKILL."""
    launcher = int(os.environ.get(LAUNCHER, "0"))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def launch(number: int, arguments: Sequence[str], jobs_per_gpu: int = 1) -> int:
    """Run `copra` with these arguments in `number` processes; return the exit status.

    On a machine with GPUs each gets one, held by this process. If one process fails, the others are ended. A
    signal that ends this process (SIGTERM, SIGINT) is forwarded to them.

    Raises:
        CopraError: the machine has GPUs, but too few.
    """
    there = gpus()
    if there and len(there) < number:
        raise CopraError(
            f"{number} processes need a GPU each, and this job sees {len(there)} ({', '.join(there)}). Lower "
            "compute.gpu and compute.processes, or give it more GPUs."
        )
    take_gpus(number, jobs_per_gpu)
    os.environ[LAUNCHER] = str(os.getpid())
    # The processes print their own errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=f"copra-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "copra.cli", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
