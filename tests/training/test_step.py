"""A step as a device computes it: without waiting for the host, and without harm where it breaks down."""

import math

import pytest
import torch
from plain_training import log_of, weights
from torch.utils._python_dispatch import _disable_current_modes

from copra.training import step
from copra.training.loop import Trainer
from copra.utils.errors import CopraError
from helpers.devices import waits


@pytest.fixture
def reads(monkeypatch):
    """The operations by which steps wait for the device, once their batches are on it."""
    found, collate, optimize = [], step.collate, Trainer._optimize

    def on_the_host(*arguments):
        with _disable_current_modes():
            return collate(*arguments)

    def watched(self, *arguments):
        with waits() as seen:
            taken = optimize(self, *arguments)
        found.append(seen)
        return taken

    monkeypatch.setattr(step, "collate", on_the_host)
    monkeypatch.setattr(Trainer, "_optimize", watched)
    return found


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


@pytest.mark.parametrize(("scale", "cross_entropy"), [(30.0, (11.0, 32.0)), (300.0, (32.0, 1000.0))])
def test_a_model_that_is_sure_of_other_tokens_may_begin_and_an_exploding_one_may_not(
    make_trainer, scale, cross_entropy
):
    """The vocabulary is small: three times the loss of a uniform guess are 10."""
    trainer = make_trainer(steps=2)
    assert 9.9 < 3 * math.log(trainer.model.config.vocab_size) < 10.1
    with torch.no_grad():
        trainer.model.base_model.norm.weight *= scale
    least, most = cross_entropy
    if most <= step.LARGEST_START:
        trainer.run()
        assert least < log_of(trainer)[0]["loss"] < most
    else:
        with pytest.raises(CopraError, match=r"^step 1: loss \d.*\(limit for cross-entropy 32\)"):
            trainer.run()
