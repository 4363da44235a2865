"""What every verb that computes sets up before it does."""

import argparse

import pytest
import torch

from copra.verbs.common import use_threads


@pytest.fixture(autouse=True)
def _settings_of_torch():
    """Put back what a verb sets for its whole process."""
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
    use_threads(argparse.Namespace(threads=together))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_memory_is_not_filled_for_the_sake_of_determinism(monkeypatch):
    use_threads(argparse.Namespace(threads=1))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("there", "products"), [(True, "high"), (False, "highest")])
def test_tf32_is_used_where_the_device_has_it(monkeypatch, there, products):
    monkeypatch.setattr("copra.models.checkpoint.has_tf32", lambda: there)
    use_threads(argparse.Namespace(threads=1), "tf32")
    assert torch.get_float32_matmul_precision() == products


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_of_float32_are_whole_otherwise(monkeypatch, precision):
    monkeypatch.setattr("copra.models.checkpoint.has_tf32", lambda: True)
    use_threads(argparse.Namespace(threads=1), precision)
    assert torch.get_float32_matmul_precision() == "highest"
