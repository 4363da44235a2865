"""What every command that computes sets up before it does."""

import argparse
import os

import pytest
import torch

from copra.commands.resources import take_gpu
from copra.commands.torch_setup import set_up_torch


@pytest.fixture(autouse=True)
def _no_settings_of_memory(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _settings_of_torch():
    """Put back what a command sets for its whole process."""
    attention, filling = torch.backends.cuda.cudnn_sdp_enabled(), torch.utils.deterministic
    filled, products = filling.fill_uninitialized_memory, torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(attention)
    filling.fill_uninitialized_memory = filled
    torch.set_float32_matmul_precision(products)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("together", [1, 2])
def test_attention_of_cudnn_which_returns_nan_is_off(monkeypatch, together):
    """In one process, and in each of several."""
    monkeypatch.setenv("WORLD_SIZE", str(together))
    torch.backends.cuda.enable_cudnn_sdp(True)
    set_up_torch(argparse.Namespace(threads=together, jobs_per_gpu=1))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_memory_is_not_filled_for_the_sake_of_determinism(monkeypatch):
    set_up_torch(argparse.Namespace(threads=1, jobs_per_gpu=1))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("there", "products"), [(True, "high"), (False, "highest")])
def test_tf32_is_used_where_the_device_has_it(monkeypatch, there, products):
    monkeypatch.setattr("copra.commands.torch_setup.has_tf32", lambda: there)
    set_up_torch(argparse.Namespace(threads=1, jobs_per_gpu=1), "tf32")
    assert torch.get_float32_matmul_precision() == products


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_of_float32_are_whole_otherwise(monkeypatch, precision):
    monkeypatch.setattr("copra.commands.torch_setup.has_tf32", lambda: True)
    set_up_torch(argparse.Namespace(threads=1, jobs_per_gpu=1), precision)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_grows_in_segments_unless_the_user_says_otherwise(monkeypatch, name):
    take_gpu([])
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:True"
    monkeypatch.setenv(name, "max_split_size_mb:64")
    take_gpu([])
    assert os.environ.pop("PYTORCH_ALLOC_CONF", "max_split_size_mb:64") == "max_split_size_mb:64"


@pytest.mark.parametrize(("jobs", "job_of_slurm", "shares"), [(1, "", []), (4, "", [0.25]), (4, "7", [])])
def test_jobs_that_share_a_gpu_share_its_memory(monkeypatch, jobs, job_of_slurm, shares):
    """Where they share one: SLURM gives each its own."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job_of_slurm:
        monkeypatch.setenv("SLURM_JOB_ID", job_of_slurm)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    limits = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", limits.append)
    set_up_torch(argparse.Namespace(threads=1, jobs_per_gpu=jobs))
    assert limits == shares


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        (["--settings", "{}"], [1]),
        (["--threads", "2", "--jobs-per-gpu", "3", "--model", "m"], [3]),
        (["--processes", "2"], []),  # their launcher takes GPUs
        (["--jobs-per-gpu", "none"], []),
        (["--jobs-per-gpu", "2", "--help"], []),
    ],
)
def test_a_gpu_is_taken_for_what_the_arguments_say(monkeypatch, arguments, taken):
    calls = []
    monkeypatch.setattr("copra.commands.resources.take_gpus", lambda jobs: calls.append(jobs))
    take_gpu(arguments)
    assert calls == taken
    monkeypatch.setenv("WORLD_SIZE", "2")
    take_gpu(arguments)
    assert calls == taken
