"""Learning rates as they are logged, against their formulas."""

import json
import math
import warnings

import pytest

from copra.training.loop import Trainer


def rates(trainer: Trainer) -> list[float]:
    """The learning rate of each step, as a part of the peak."""
    trainer.run()
    lines = [json.loads(line) for line in trainer.log_text().splitlines()]
    return [line["learning_rate"] / trainer.training.learning_rate for line in lines]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1] * 8),
        ("linear", [1 - i / 8 for i in range(8)]),
        ("cosine", [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
    ],
)
def test_schedules(make_trainer, schedule, shares):
    assert rates(make_trainer(steps=8, schedule=schedule)) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1] * 5),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)]),
    ],
)
def test_every_schedule_warms_up(make_trainer, schedule, shares):
    found = rates(make_trainer(steps=8, schedule=schedule, warmup_steps=3))
    assert found == pytest.approx([0, 1 / 3, 2 / 3, *shares])


def test_a_warm_up_ends_with_epochs_of_fewer_steps(make_trainer):
    """18 rows in batches of 4: 5 steps."""
    found = rates(make_trainer(epochs=1, warmup_steps=100))
    assert found == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_resuming_goes_on_with_the_rate_and_without_a_warning(make_trainer, monkeypatch):
    options = {"steps": 8, "schedule": "linear", "warmup_steps": 3, "save_every": -1}
    optimize = Trainer._optimize

    def dying(self, *arguments):
        if arguments[-1] == 6:
            raise KeyboardInterrupt
        return optimize(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimize", dying)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(**options).run()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler")
        found = rates(make_trainer(**options))
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])
