"""Signals, and states that are damaged: a training goes on from its last whole state, to the last bit."""

import os
import signal

import pytest
from plain_training import log_of, same, weights
from test_resume import break_off, steps_taken

from copra.training.saves import Saves, Stopped

DROPOUT = {"architecture": "gpt2", "dropout": 0.2, "select": "loss", "validations": 5}


def send(trainer, number: int, at: int) -> None:
    """Let a signal come in the middle of step `at`."""
    optimise = trainer._optimise

    def sending(*arguments):
        if arguments[-1] == at:
            os.kill(os.getpid(), number)
        return optimise(*arguments)

    trainer._optimise = sending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first_and_the_training_goes_on_from_there(make_trainer, number):
    whole = make_trainer(state="whole", **DROPOUT)
    expected = whole.run()
    before = signal.getsignal(number)
    ended = make_trainer(state="ended", **DROPOUT)
    send(ended, number, at=7)
    with pytest.raises(
        Stopped, match=rf"{number.name} after step 7, which is saved in .*ended\. Run"
    ) as stop:
        ended.run()
    assert stop.value.status == 128 + number
    assert signal.getsignal(number) is before
    assert [path.name for path in ended.state.glob("step-*")] == ["step-000000007"]
    again = make_trainer(state="ended", **DROPOUT)
    taken = steps_taken(again)
    assert again.run() == expected
    assert taken == [8, 9, 10]
    assert same(weights(again.model), weights(whole.model))
    assert again.log_text() == whole.log_text()


def test_a_signal_in_the_last_step_lets_it_end(make_trainer):
    trainer = make_trainer()
    send(trainer, signal.SIGTERM, at=10)
    assert trainer.run()["steps"] == 10


@pytest.fixture
def as_in_a_terminal():
    """SIGINT as Python takes it, which the tests' own process ignores where it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_at_once(make_trainer, as_in_a_terminal):
    trainer = make_trainer()
    send(trainer, signal.SIGINT, at=3)
    send(trainer, signal.SIGINT, at=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert not list(trainer.state.glob("step-*"))


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "one bit", "gone"])
def test_of_two_states_the_one_before_is_taken_where_the_newest_is_damaged(
    make_trainer, monkeypatch, file, damage
):
    settings = {**DROPOUT, "save_steps": 3}
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    broken = make_trainer(state="broken", **settings)
    send(broken, signal.SIGTERM, at=8)
    with pytest.raises(Stopped):
        broken.run()
    assert sorted(path.name for path in broken.state.glob("step-*")) == ["step-000000006", "step-000000008"]
    damaged = broken.state / "step-000000008" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "cut short":
        content = content[:-40]
    damaged.write_bytes(content)
    if damage == "gone":
        damaged.unlink()
    again = make_trainer(state="broken", **settings)
    taken = steps_taken(again)
    assert again.run() == expected
    assert taken == [7, 8, 9, 10]
    assert same(weights(again.model), weights(whole.model))
    assert again.log_text() == whole.log_text()


def test_states_are_saved_by_steps_and_by_time():
    saves = Saves(seconds=1e9, steps=4)
    assert [step for step in range(1, 13) if saves.due(step)] == [4, 8, 12]
    assert not any(Saves(seconds=1e9).due(step) for step in range(1, 13))
    assert all(Saves(seconds=-1.0, steps=4).due(step) for step in range(1, 13))


def test_damaged_best_weights_are_named(make_trainer, monkeypatch):
    from copra.errors import CopraError

    trainer = make_trainer(select="loss")
    monkeypatch.setattr(type(trainer), "_validate", damaging(type(trainer)._validate))
    with pytest.raises(CopraError, match=r"best\.safetensors: the best weights .* Delete .*state and run"):
        trainer.run()


def damaging(validate):
    def spoil(trainer, *arguments, **options):
        found = validate(trainer, *arguments, **options)
        best = trainer.state / "best.safetensors"
        best.write_bytes(best.read_bytes()[:-40])
        return found

    return spoil


def test_a_broken_off_training_keeps_what_it_had_logged(make_trainer, monkeypatch):
    broken = make_trainer(state="broken", save_steps=2)
    break_off(broken, monkeypatch, saved=4, at=6)
    assert [line["step"] for line in log_of(broken)][:4] == [1, 2, 3, 4]
