"""The set-up of torch that all commands share that compute with it."""

import sys
from argparse import Namespace

import torch

from copra.models.checkpoint import has_tf32
from copra.schema.settings import Precision
from copra.utils import processes
from copra.utils.gpu import gpus, jobs_beside


def set_up_torch(options: Namespace, precision: Precision = "float32") -> None:
    """Set the number of threads, deterministic algorithms, kernels without bugs, and this process's GPU."""
    together, jobs = processes.world_size(), options.jobs_per_gpu
    if torch.cuda.is_available():
        if together > 1:
            torch.cuda.set_device(processes.rank())
        if jobs_beside(jobs) > 1:
            torch.cuda.set_per_process_memory_fraction(1 / jobs_beside(jobs))
    elif gpus():
        told = f"torch {torch.__version__} cannot use the GPU of this machine, so that the CPU computes"
        print(told, file=sys.stderr)
    torch.set_num_threads(max(1, options.threads // together))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would also fill all new memory with NaN, an extra write per new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    # With a mask, cuDNN's attention returns NaN in the backward pass if the length modulo 128 is 64
    # (pytorch/pytorch#196678) and for single queries, as in the pass of a latent
    # (NVIDIA/cudnn-frontend#1072). Without it, PyTorch selects another kernel.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if precision == "tf32":
        torch.set_float32_matmul_precision("high" if has_tf32() else "highest")
