"""Several processes train as one does, up to rounding: in float64, since AdamW's first steps are but signs
of gradients, which make much of a little."""

import json
import multiprocessing
import os
import socket

import pytest
import torch
from accelerate.state import AcceleratorState
from plain_training import log_of, weights
from safetensors.torch import load_file, save_file

from copra.utils import processes

FORKED = multiprocessing.get_context("fork")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_the_cpu")]
SECONDS = 60
STAGES = {
    "cot": {"stage": "cot"},
    "in micro-batches": {"stage": "cot", "micro_batch_size": 1, "batch_size": 5},
    "rows that no process shares": {"stage": "cot", "batch_size": 1},
    "latents": {"stage": "coconut", "schedule": "cosine", "warmup_steps": 3},
    "mixed numbers of latents": {"stage": "mixed", "select_best_by": "loss", "num_validations": 5},
    "gpt2": {"stage": "mixed", "architecture": "gpt2", "tied": False},
    "a projection": {"stage": "projected"},
    "a step decoder": {"stage": "explained"},
    # Without its distillation, which is scaled by a standard deviation of what a process reads.
    "self-distillation": {"stage": "codi alone"},
    "removal": {"stage": "removing"},
    "a mind reader": {"stage": "kd.0"},
    "an emulator": {"stage": "kd.1"},
    "healing": {"stage": "healed latents"},
    "looped layers": {"stage": "looped"},
    "healing looped layers": {"stage": "healed loop", "architecture": "gpt2"},
    "an early stop": {"stop_early": {"patience": 1, "min_delta": 100.0}, "num_validations": 5},
}


def double(trainer) -> None:
    for module in (trainer.model, trainer.extra_modules, trainer.teacher):
        if module is not None:
            module.double()


def train_together(make_trainer, count: int = 2, in_float64: bool = True, **settings):
    """Train with so many processes, forks of this one; returns the first one's record, and its weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = make_trainer(**settings)
    if in_float64:
        double(trainer)
    trainer.state.mkdir(exist_ok=True)

    def work(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        AcceleratorState._reset_state(reset_partial_state=True)
        record = trainer.run()
        assert {type(value) for value in weights(trainer.model).values()} == {torch.Tensor}
        processes.shutdown()
        save_file({n: v.contiguous() for n, v in weights(trainer.model).items()}, trainer.state / f"{rank}")
        (trainer.state / f"{rank}.json").write_text(json.dumps(record))

    started = [FORKED.Process(target=work, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * count
    models = [load_file(trainer.state / f"{rank}") for rank in range(count)]
    assert all(torch.equal(models[0][name], other[name]) for other in models for name in other)
    return json.loads((trainer.state / "0.json").read_text()), models[0], log_of(trainer)


@pytest.fixture
def same_training(make_trainer):
    """Trains by one process and by several, and compares weights, losses and records."""

    def compare(count: int = 2, **settings):
        alone = make_trainer(state="alone", **settings | {"sharding": False})
        double(alone)
        record = alone.run()
        together, model, log = train_together(make_trainer, count, state="together", **settings)
        assert {**together, "selected": None} == {**json.loads(json.dumps(record)), "selected": None}
        assert together["selected"]["step"] == record["selected"]["step"]
        assert together["selected"]["value"] == pytest.approx(record["selected"]["value"], abs=1e-6)
        expected = log_of(alone)
        assert len(log) == len(expected) == record["steps"]
        for line, other in zip(log, expected, strict=True):
            for each in (line, other):
                each.pop("self_distillation", None)
                each.pop("validation_self_distillation", None)
            assert line == pytest.approx(other, rel=1e-6, abs=1e-6)
        for name, value in weights(alone.model).items():
            torch.testing.assert_close(model[name], value, rtol=0, atol=1e-6)

    return compare


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_train_as_one(same_training, name):
    same_training(**STAGES[name])


SHARED = ("in micro-batches", "mixed numbers of latents", "gpt2", "a step decoder", "an emulator", "healing")
SHARED += ("looped layers", "healing looped layers")


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_that_share_the_weights_train_as_one(same_training, name):
    same_training(**STAGES[name], sharding=True)


@pytest.mark.parametrize("sharding", [False, True])
def test_more_processes_than_rows_of_a_batch(same_training, sharding):
    same_training(3, stage="coconut", batch_size=2, sharding=sharding)


def test_the_loss_curve_in_float32(make_trainer):
    alone = make_trainer(state="alone", stage="coconut")
    alone.run()
    _, _, log = train_together(make_trainer, state="together", stage="coconut", in_float64=False)
    expected = [line["loss"] for line in log_of(alone)]
    assert [line["loss"] for line in log] == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]


def test_adapters(same_training):
    same_training(stage="coconut", lora={"rank": 3, "alpha": 6.0})
