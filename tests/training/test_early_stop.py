"""Trainings that end at a validation before their last step, and what they leave: weights, log and record."""

import random

import pytest
from plain_training import log_of, same, weights
from test_resume import steps_taken

from copra.training.progress import Progress
from copra.training.validation import ALL_STEPS, Validation

FIVE = {"num_validations": 5}


def losses_of(trainer) -> dict[int, float]:
    return {line["step"]: line["validation_loss"] for line in log_of(trainer) if "validation_loss" in line}


def given_losses(monkeypatch, *losses) -> None:
    """Let the validations find these losses, one after the other."""
    left = iter(losses)
    monkeypatch.setattr(Validation, "_losses", lambda *_: {"validation_loss": next(left)})


def ending(record) -> tuple:
    return record["steps"], record["max_steps"], record["stop_reason"]


@pytest.mark.slow
def test_a_training_ends_once_its_loss_is_low_enough(make_trainer):
    """As a training of so many steps does, to the last bit, since the rate is constant."""
    whole = make_trainer(state="whole", **FIVE)
    record = whole.run()
    assert not {"max_steps", "stop_reason"} & set(record)
    losses = losses_of(whole)
    assert list(losses) == [2, 4, 6, 8, 10]
    assert losses[6] < losses[4]
    stopped = make_trainer(state="stopped", stop_early={"target_loss": losses[6]}, **FIVE)
    found = stopped.run()
    assert ending(found) == (6, 10, "target loss")
    short = make_trainer(state="short", steps=6, num_validations=3)
    expected = short.run()
    assert same(weights(stopped.model), weights(short.model))
    assert stopped.log_text() == short.log_text()
    assert {name: found[name] for name in expected} == expected
    assert found["work"]["model"]["tokens"] < record["work"]["model"]["tokens"]


def test_the_rate_decays_over_the_maximum(make_trainer):
    whole = make_trainer(state="whole", schedule="cosine", **FIVE)
    whole.run()
    stopped = make_trainer(
        state="stopped", schedule="cosine", stop_early={"target_loss": losses_of(whole)[4]}, **FIVE
    )
    stopped.run()
    assert log_of(stopped) == log_of(whole)[:4]


def test_a_training_ends_once_its_accuracy_is_high_enough(make_trainer, capsys):
    values = iter([0.2, 0.4, 0.75, 0.9])
    stop = {"target_accuracy": 0.75, "patience": 5}
    trainer = make_trainer(accuracy=lambda: next(values), stop_early=stop, **FIVE)
    assert ending(trainer.run()) == (6, 10, "target accuracy")
    accuracies = [line["validation_accuracy"] for line in log_of(trainer) if "validation_accuracy" in line]
    assert accuracies == [0.2, 0.4, 0.75]
    assert "ended after step 6 of at most 10: target accuracy" in capsys.readouterr().out


def test_an_accuracy_that_ends_a_training_does_not_select_its_weights(make_trainer, monkeypatch):
    given_losses(monkeypatch, 3.0, 1.0, 2.0)
    values = iter([0.2, 0.3, 0.9])
    trainer = make_trainer(
        accuracy=lambda: next(values), select_best_by="loss", stop_early={"target_accuracy": 0.9}, **FIVE
    )
    record = trainer.run()
    assert record["selected"] == {"by": "loss", "step": 4, "value": 1.0}
    assert ending(record) == (6, 10, "target accuracy")


@pytest.mark.parametrize(
    ("losses", "stop", "end"),
    [
        ([5, 4, 4, 3, 2], {"patience": 1}, (6, 10, "plateau")),
        ([5, 4, 4, 3, 3], {"patience": 2}, (10, 10, ALL_STEPS)),
        # An improvement is a fall by more than 1, from 5 to below 4, and from 3.9 to below 2.9.
        ([5, 4.5, 4.0, 3.5, 3.0], {"patience": 2, "min_delta": 1.0}, (6, 10, "plateau")),
        ([5, 4.5, 3.9, 3.5, 2.8], {"patience": 2, "min_delta": 1.0}, (10, 10, ALL_STEPS)),
        ([5, 6, 7, 4, 3], {"patience": 3}, (10, 10, ALL_STEPS)),
        # The last step may meet a condition too.
        ([5, 4, 3, 2, 1], {"target_loss": 1}, (10, 10, "target loss")),
        ([5, 4, 4, 3, 2], {"patience": 1, "target_loss": 4}, (4, 10, "target loss")),
    ],
)
def test_a_training_ends_on_a_plateau(make_trainer, monkeypatch, losses, stop, end):
    given_losses(monkeypatch, *losses)
    assert ending(make_trainer(stop_early=stop, **FIVE).run()) == end


def first_plateau(losses, patience, min_delta) -> int | None:
    """The first validation whose `patience` last ones were no improvement, from all losses before each."""
    levels = losses[:1]
    for loss in losses[1:]:
        levels.append(loss if loss < levels[-1] - min_delta else levels[-1])
    for end in range(patience, len(losses)):
        if levels[end] == levels[end - patience]:
            return end
    return None


def test_plateaus_are_those_of_a_plain_search():
    found = set()
    for seed in range(300):
        draw = random.Random(seed)
        losses = [draw.randrange(12) / 4 for _ in range(8)]
        patience, min_delta, progress = draw.randrange(1, 4), draw.choice([0, 0.25, 0.5]), Progress()
        end = None
        for index, loss in enumerate(losses):
            progress.count_validation(loss, min_delta)
            if progress.not_improved >= patience:
                end = index
                break
        assert end == first_plateau(losses, patience, min_delta)
        found.add(end)
    assert len(found) > 5


STOPPED = {
    "plateau": {"stop_early": {"patience": 3, "min_delta": 100.0}},
    "best by loss": {"stop_early": {"patience": 3, "min_delta": 100.0}, "select_best_by": "loss"},
    "gpt2": {"stop_early": {"patience": 3, "min_delta": 100.0}, "architecture": "gpt2", "dropout": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("save_steps", [1, 5])
def test_a_training_killed_after_the_deciding_validation_ends_the_same(
    make_trainer, monkeypatch, name, save_steps
):
    """To the last bit. The count of validations without improvement comes from the state of step 7 or 5."""
    settings = {**STOPPED[name], "save_steps": save_steps, **FIVE}
    whole = make_trainer(state="whole", **settings)
    expected = whole.run()
    assert ending(expected) == (8, 10, "plateau")
    run = Validation.run

    def die(self, loss_module, reasoner, step):
        found = run(self, loss_module, reasoner, step)
        if self.stop_reason:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "run", die)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(state="broken", **settings).run()
    resumed = make_trainer(state="broken", **settings)
    taken = steps_taken(resumed)
    assert resumed.run() == expected
    assert taken == ([8] if save_steps == 1 else [6, 7, 8])
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.log_text() == whole.log_text()
