"""A step as a device computes it: without waiting for the host, and without harm where it breaks down."""

import pytest
import torch
from plain_training import log_of, weights
from torch.utils._python_dispatch import TorchDispatchMode

from copra.errors import CopraError
from copra.training.loop import Trainer

READING = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")
"""What hands values of tensors to the host, for which a GPU must finish all work before."""


class Reads(TorchDispatchMode):
    """Collects such operations."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if str(function).startswith(READING):
            self.seen.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.fixture
def reads(monkeypatch):
    """The operations by which steps read from the device, once their batches are on it."""
    found, optimise = [], Trainer._optimise
    monkeypatch.setattr("copra.training.step.collate", lambda *arguments: _looked_through(*arguments))

    def watched(self, *arguments):
        with Reads() as mode:
            taken = optimise(self, *arguments)
        found.append(mode.seen)
        return taken

    monkeypatch.setattr(Trainer, "_optimise", watched)
    return found


def _looked_through(*arguments):
    """A batch as `collate` makes it, and what is found in it on the host before it moves to a device."""
    from copra.reasoning.forward import collate

    with torch.utils._python_dispatch._disable_current_modes():
        batch = collate(*arguments)
        for each in (batch, batch.teacher):
            if each is not None:
                assert each.supervised.dim() == 1
                assert each.unpadded >= 0
    return batch


@pytest.mark.parametrize(
    ("stage", "architecture"),
    [("cot", "llama"), ("mixed", "llama"), ("coconut", "gpt2"), ("healed", "llama")],
)
def test_a_step_reads_nothing_from_the_device(make_trainer, reads, stage, architecture):
    """Where rows of a batch differ in length: without any padding transformers asks whether there is some."""
    trainer = make_trainer(stage, architecture=architecture, batch_size=9, steps=6)
    trainer.run()
    assert reads == [[]] * 6


def test_nothing_reaches_the_weights_from_a_broken_step_on(make_trainer, gradients):
    """Though the host reads of it when the next one is under way: that must not be taken either."""
    expected = make_trainer(state="expected", steps=3)
    expected.run()
    trainer = make_trainer(steps=10)
    calls = []

    def spoil(gradient):
        calls.append(None)
        return gradient * float("nan") if len(calls) == 4 else gradient

    trainer.model.base_model.norm.weight.register_hook(spoil)
    gradients.clear()
    with pytest.raises(CopraError, match=r"^step 4: loss \d.* gradient norm nan"):
        trainer.run()
    assert len(calls) > 4
    assert len(gradients) == 3
    assert [line["step"] for line in log_of(trainer)] == [1, 2, 3]
    for name, value in weights(expected.model).items():
        assert torch.equal(weights(trainer.model)[name], value), name


def test_a_broken_step_is_never_saved(make_trainer):
    trainer = make_trainer(save_steps=1)
    trainer.model.base_model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(CopraError, match=r"^step 1: "):
        trainer.run()
    assert not list(trainer.state.glob("step-*"))
