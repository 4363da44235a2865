"""Several processes for one job: copra starts itself so many times, and each does a part of the work.

torch's own launcher (torchrun's) starts and watches them; each learns from its environment which it is.
Nothing here imports torch before it is needed.
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

from copra.utils.errors import CopraError
from copra.utils.gpu import gpus, take_gpus

LAUNCHER = "COPRA_LAUNCHER"

T = TypeVar("T")


def world_size() -> int:
    """How many processes do this job together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0; the first one writes what there is to write."""
    return int(os.environ.get("RANK", "0"))


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's part of some items: every `world_size()`-th."""
    return items[rank() :: world_size()]


def all_gather(value: T) -> list[T]:
    """The values of all processes in order, for each of them; all must call it.

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
    """Wait until all processes have come here, and what they wrote before is written."""
    all_gather(None)


def init() -> None:
    """Meet the other processes, if that has not happened."""
    from torch import distributed

    if world_size() > 1 and not distributed.is_initialized():
        # One may write a large checkpoint while the others wait. Where one dies the launcher ends all.
        distributed.init_process_group("gloo", timeout=timedelta(days=1))


def shutdown() -> None:
    """Part from the other processes, once all have come so far."""
    if world_size() == 1 or "torch" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def token_of(pid: int) -> str:
    """A process's number and when it started: no other process ever has both."""
    # The name of the program, in brackets, may hold anything.
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}.{start}"


def is_alive(number: int, started: float) -> bool:
    """True if a process of this number runs on this machine that began before a Unix time, as one that began
    later only bears the same number."""
    import psutil

    try:
        return psutil.Process(number).create_time() < started + 1
    except psutil.Error:
        return False


def end_with_launcher() -> None:
    """See to it that this process ends with the one that launched it, though that be killed (SIGKILL)."""
    launcher = int(os.environ.get(LAUNCHER, "0"))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def launch(number: int, arguments: Sequence[str], jobs_per_gpu: int = 1) -> int:
    """Run `copra` with these arguments in `number` processes; returns the exit status.

    They have a GPU each where the machine has any, held by this process. If one fails the others are ended.
    A signal that ends this process (SIGTERM, SIGINT) is handed on to them.

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
    # What goes wrong the processes tell themselves.
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
