"""Signals, and states that are damaged: a training goes on from its last whole state, to the last bit."""

import os
import signal
from pathlib import Path

import pytest
from plain_training import log_of, same, weights
from safetensors.torch import load_file, save_file
from test_resume import break_off, steps_taken

from copra.training.loop import LOG
from copra.training.saves import CheckpointSchedule, Stopped
from copra.training.validation import BEST, Validation
from copra.utils.errors import CopraError

DROPOUT = {"architecture": "gpt2", "dropout": 0.2, "select_best_by": "loss", "num_validations": 5}


def send(trainer, number: int, at: int) -> None:
    """Let a signal come in the middle of step `at`."""
    optimize = trainer._optimize

    def sending(*arguments):
        if arguments[-1] == at:
            os.kill(os.getpid(), number)
        return optimize(*arguments)

    trainer._optimize = sending


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [("state.safetensors", "one bit"), ("state.json", "cut short"), ("state.safetensors", "gone")],
)
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
    saves = CheckpointSchedule(seconds=1e9, steps=4)
    assert [step for step in range(1, 13) if saves.is_due(step)] == [4, 8, 12]
    assert not any(CheckpointSchedule(seconds=1e9).is_due(step) for step in range(1, 13))
    assert all(CheckpointSchedule(seconds=-1.0, steps=4).is_due(step) for step in range(1, 13))


def cut(best):
    best.write_bytes(best.read_bytes()[:-40])


def swap(best):
    """Whole weights, but not these: as of another training with the same state."""
    tensors = {name: value + 1 for name, value in load_file(best).items()}
    save_file(tensors, best)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "not the weights that were chosen"),
        (swap, "not the weights that"),
        (Path.unlink, "cannot be read"),
    ],
    ids=["cut", "swapped", "gone"],
)
def test_damaged_best_weights_are_named(make_trainer, monkeypatch, damage, reason):
    trainer = make_trainer(select_best_by="loss", num_validations=2)
    validate = Validation.run

    def spoil(self, loss_module, reasoner, step):
        found = validate(self, loss_module, reasoner, step)
        if step == self.total:
            damage(trainer.state / BEST)
        return found

    monkeypatch.setattr(Validation, "run", spoil)
    with pytest.raises(CopraError, match=rf"best\.safetensors: .*{reason}.* Delete .*state and run"):
        trainer.run()


def test_the_chosen_weights_are_known_after_an_interruption(make_trainer):
    """Those of step 4, the training is ended after step 7, and another one puts its own weights there."""
    settings = {"select_best_by": "accuracy", "num_validations": 5}
    values = iter([0.3, 0.6, 0.5, 0.4, 0.1])
    ended = make_trainer(accuracy=lambda: next(values), **settings)
    send(ended, signal.SIGTERM, at=7)
    with pytest.raises(Stopped):
        ended.run()
    swap(ended.state / "best.safetensors")
    again = make_trainer(accuracy=lambda: next(values), **settings)
    with pytest.raises(CopraError, match="not the weights that were chosen after step 4"):
        again.run()


def lose(lines):
    del lines[3]


def repeat(lines):
    lines.insert(3, lines[2])


def mix(lines):
    lines[3], lines[4] = lines[4], lines[3]


def tear(lines):
    lines[3] = lines[3][:-5]


DAMAGED_LINES = [lose, repeat, mix, tear]


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_a_log_of_other_lines_than_one_a_step_is_refused(make_trainer, damage):
    trainer = make_trainer()
    trainer.run()
    damage_log(trainer, damage)
    with pytest.raises(
        CopraError, match=r"training\.jsonl: line 4 of .* step 4 of 10, .* Delete .*state and run"
    ):
        trainer.log_text()


def test_a_log_with_lines_after_the_last_step_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.run()
    damage_log(trainer, lambda lines: lines.append(lines[-1]))
    with pytest.raises(CopraError, match=r"training\.jsonl: line 11 of 11"):
        trainer.log_text()


@pytest.mark.parametrize("damage", [lose, tear])
def test_a_training_does_not_go_on_after_a_log_of_other_lines(make_trainer, damage):
    """Not hours later: when it begins."""
    ended = make_trainer()
    send(ended, signal.SIGTERM, at=7)
    with pytest.raises(Stopped):
        ended.run()
    damage_log(ended, damage)
    again = make_trainer()
    taken = steps_taken(again)
    with pytest.raises(CopraError, match=r"training\.jsonl: line 4 of . is not that of step 4 of 7"):
        again.run()
    assert taken == []


def damage_log(trainer, damage) -> None:
    log = trainer.state / LOG
    lines = log.read_text().splitlines()
    damage(lines)
    log.write_text("".join(line + "\n" for line in lines))


@pytest.mark.slow
def test_a_broken_off_training_keeps_what_it_had_logged(make_trainer, monkeypatch):
    broken = make_trainer(state="broken", save_steps=2)
    break_off(broken, monkeypatch, saved=4, at=6)
    assert [line["step"] for line in log_of(broken)][:4] == [1, 2, 3, 4]
