"""Options for threads, processes and GPUs, and the set-up that must precede the import of torch."""

import os
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence

from copra.utils import processes
from copra.utils.gpu import MOST_JOBS, take_gpus


def add_threads(parser: ArgumentParser) -> None:
    """Add --threads and --jobs-per-gpu, for a command that computes with torch."""
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument(
        "--jobs-per-gpu",
        type=int,
        choices=range(1, MOST_JOBS + 1),
        default=1,
        help="number of jobs that share a GPU, each with an equal share of its memory (default: 1)",
    )


def add_processes(parser: ArgumentParser) -> None:
    """Add --processes, for a command whose work can be distributed; `copra.cli` then starts that many."""
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes that share the work and the threads, with one GPU each if there are any "
        "(default: 1)",
    )


def take_gpu(arguments: Sequence[str]) -> None:
    """Take the GPU of a command with these arguments, and configure the allocation of its memory.

    This precedes the import of torch, which may look for GPUs. Several processes get theirs from their
    launcher. Invalid arguments are left to the command's own parser.
    """
    # Batches of varying widths fragment memory that is allocated in fixed segments.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    add_threads(parser)
    add_processes(parser)
    try:
        options, _ = parser.parse_known_args(arguments)
    except ArgumentError:
        return
    if not options.help and options.processes <= 1 and processes.world_size() == 1:
        take_gpus(jobs=options.jobs_per_gpu)
