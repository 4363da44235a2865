"""Trainings that are broken off go on as if nothing had happened."""

from types import SimpleNamespace

import pytest
import torch
from plain_training import log_of, same, weights

from copra.training.loop import LOG
from copra.training.validation import BEST
from copra.utils.heartbeat import RUN, SPEED

pytestmark = pytest.mark.slow


def break_off(trainer, monkeypatch, *, saved: int, at: int) -> None:
    """Run until the weights of step `at` are made, and die; only the state of step `saved` is on disk."""
    from copra.training import loop

    save, optimize = loop.save_state, trainer._optimize

    def save_one(folder, step, *rest):
        if step == saved:
            save(folder, step, *rest)

    def die(*arguments):
        line = optimize(*arguments)
        if arguments[-1] == at:
            raise KeyboardInterrupt
        return line

    trainer._optimize = die
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save_one)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()


def steps_taken(trainer) -> list[int]:
    """Filled with the numbers of the steps that a run really takes."""
    taken, optimize = [], trainer._optimize

    def count(*arguments):
        taken.append(arguments[-1])
        return optimize(*arguments)

    trainer._optimize = count
    return taken


LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.2}
RESUMED = {
    "coconut": {"stage": "coconut", "schedule": "cosine", "warmup_steps": 6},
    "gpt2 with dropout and mixing": {"stage": "mixed", "architecture": "gpt2", "dropout": 0.2},
    "looped layers": {"stage": "looped", "select_best_by": "loss", "num_validations": 5},
    "looped layers with adapters on gpt2": {"stage": "looped", "architecture": "gpt2", "lora": LORA},
    "best by loss": {"stage": "cot", "select_best_by": "loss", "num_validations": 5, "learning_rate": 3e-2},
    "codi with its projection": {"stage": "codi", "schedule": "cosine", "warmup_ratio": 0.3},
    "sim-cot with its decoder": {"stage": "explained", "select_best_by": "loss", "num_validations": 5},
    "mind reader": {"stage": "kd.0", "architecture": "gpt2", "dropout": 0.2},
    "emulator": {"stage": "kd.1", "select_best_by": "loss", "num_validations": 5},
    "coupled": {"stage": "kd.2"},
    "adapters": {
        "stage": "codi",
        "lora": LORA,
        "select_best_by": "loss",
        "num_validations": 5,
        "learning_rate": 3e-2,
    },
    "adapters on gpt2": {"stage": "mixed", "architecture": "gpt2", "lora": LORA, "tied": False},
    "adapters with a teacher": {"stage": "kd.0", "lora": LORA},
    "healing": {"stage": "healed", "architecture": "gpt2", "dropout": 0.2},
    "healing with adapters": {"stage": "healed", "lora": LORA},
    "healing latents": {
        "stage": "healed latents",
        "micro_batch_size": 2,
        "select_best_by": "loss",
        "num_validations": 5,
    },
    "healing removal": {"stage": "healed removal"},
    "removal": {"stage": "removing"},
    "removal with smoothing": {"stage": "removing smoothly", "select_best_by": "loss", "num_validations": 5},
}


# Random numbers, parts and adapters, a teacher and micro-batches, a stage that moves. The others are slow.
QUICK = (
    "looped layers",
    "gpt2 with dropout and mixing",
    "adapters",
    "healing latents",
    "removal with smoothing",
)
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RESUMED]


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_training_is_the_undisturbed_one(make_trainer, monkeypatch, name):
    """To the last bit, in weights, log and record; over the end of an epoch too (5 batches each)."""
    settings = {**RESUMED[name], "save_every": -1.0}
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    broken = make_trainer(state="broken", **settings)
    break_off(broken, monkeypatch, saved=4, at=8)
    assert [path.name for path in broken.state.glob("step-*")] == ["step-000000004"]
    assert len(log_of(broken)) == 7
    torch.manual_seed(99)
    resumed = make_trainer(state="broken", **settings)
    taken = steps_taken(resumed)
    assert resumed.run() == expected
    assert taken == list(range(5, 11))
    assert same(weights(resumed.model), weights(whole.model))
    assert same(weights(resumed.extra_modules), weights(whole.extra_modules))
    assert resumed.log_text() == whole.log_text()


@pytest.mark.parametrize(
    ("name", "saved"), [("removal", 1), ("removal", 6), ("adapters", 5), ("adapters", 9)]
)
def test_it_may_be_broken_off_anywhere(make_trainer, monkeypatch, name, saved):
    """Within a part of a stage that moves, and between two of them."""
    settings = {**RESUMED[name], "save_every": -1.0}
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    break_off(make_trainer(state="broken", **settings), monkeypatch, saved=saved, at=10)
    resumed = make_trainer(state="broken", **settings)
    assert resumed.run() == expected
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.log_text() == whole.log_text()


def test_a_training_may_be_broken_off_more_than_once(make_trainer, monkeypatch):
    settings = {"stage": "mixed", "architecture": "gpt2", "dropout": 0.2, "save_every": -1.0}
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    for saved, at in ((2, 3), (7, 9)):
        break_off(make_trainer(state="broken", **settings), monkeypatch, saved=saved, at=at)
    resumed = make_trainer(state="broken", **settings)
    assert resumed.run() == expected
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.log_text() == whole.log_text()


def test_accuracies_are_not_taken_again(make_trainer, monkeypatch):
    accuracies = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.4, 10: 0.1}
    settings = {"select_best_by": "accuracy", "num_validations": 5, "save_every": -1.0, "state": "broken"}
    asked = iter([0.3, 0.6, 0.5])
    broken = make_trainer(accuracy=lambda: next(asked), **settings)
    break_off(broken, monkeypatch, saved=5, at=7)
    asked_again = iter([0.5, 0.4, 0.1])
    resumed = make_trainer(accuracy=lambda: next(asked_again), **settings)
    assert resumed.run()["selected"] == {"by": "accuracy", "step": 4, "value": 0.6}
    log = log_of(resumed)
    assert {n["step"]: n["validation_accuracy"] for n in log if "validation_accuracy" in n} == accuracies


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_torn_state_lets_training_start_anew(make_trainer, monkeypatch, file):
    settings = {
        "architecture": "gpt2",
        "dropout": 0.2,
        "select_best_by": "loss",
        "num_validations": 5,
        "save_every": -1.0,
    }
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    broken = make_trainer(state="broken", **settings)
    break_off(broken, monkeypatch, saved=4, at=7)
    torn = broken.state / "step-000000004" / file
    torn.write_bytes(torn.read_bytes()[:-40])
    torch.manual_seed(99)
    again = make_trainer(state="broken", **settings)
    taken = steps_taken(again)
    assert again.run() == expected
    assert taken == list(range(1, 11))
    assert same(weights(again.model), weights(whole.model))
    assert again.log_text() == whole.log_text()


def test_states_are_saved_as_often_as_asked(make_trainer, monkeypatch):
    from copra.training import loop, saves

    clock = iter(range(0, 10_000, 10))
    saved = []
    monkeypatch.setattr(saves, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(loop, "save_state", lambda folder, step, *_: saved.append(step))
    make_trainer(save_every=25, state="a").run()
    # Ten seconds a look at the clock, and one more look after a save: every third step, never the last.
    assert saved == [3, 6, 9]
    saved.clear()
    make_trainer(save_every=300, state="b").run()
    assert saved == []


def test_forgetting_removes_the_state_whole(make_trainer):
    trainer = make_trainer(select_best_by="loss", save_every=-1.0)
    trainer.run()
    assert {path.name for path in trainer.state.iterdir()} == {
        *(LOG, BEST, RUN, SPEED),
        *("step-000000008", "step-000000009"),
    }
    trainer.delete_state()
    assert not trainer.state.exists()
