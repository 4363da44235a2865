import re

import pytest
from pydantic import ValidationError

from copra.schema.training import Training


def test_defaults_are_those_of_the_methods_paper():
    training = Training(steps=1)
    assert (training.batch_size, training.max_grad_norm, training.weight_decay) == (128, 1.0, 0.01)
    assert (training.schedule, training.select_best_by) == ("constant", "loss")


def test_exactly_one_of_steps_and_epochs():
    assert Training(steps=3).epochs is None
    assert Training(epochs=0.5).steps is None
    for lengths in ({}, {"steps": 3, "epochs": 1}):
        with pytest.raises(ValidationError, match="exactly one of 'steps' and 'epochs'"):
            Training(**lengths)


def test_the_batch_is_a_multiple_of_the_micro_batch():
    assert Training(steps=1, batch_size=12, micro_batch_size=4).micro_batch_size == 4
    with pytest.raises(ValidationError, match="'batch_size' 12 is not a multiple of 'micro_batch_size' 5"):
        Training(steps=1, batch_size=12, micro_batch_size=5)


def test_early_stopping_is_written_only_where_it_is_given():
    """So that trainings without it keep their settings, and with them their results."""
    assert "stop_early" not in Training(steps=1).canonical()
    stop = Training(steps=1, stop_early={"target_accuracy": 0.9}).canonical()["stop_early"]
    assert stop == {"target_loss": None, "target_accuracy": 0.9, "patience": None, "min_delta": 0.0}


@pytest.mark.parametrize(
    ("stop", "needed"),
    [(None, False), ({"patience": 2}, False), ({"target_loss": 1}, False), ({"target_accuracy": 0.5}, True)],
)
def test_accuracy_is_measured_where_it_selects_or_ends_the_training(stop, needed):
    assert Training(steps=1, stop_early=stop).needs_accuracy == needed
    assert Training(steps=1, stop_early=stop, select_best_by="accuracy").needs_accuracy


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({}, "give at least one of 'target_loss', 'target_accuracy' and 'patience'"),
        ({"target_loss": 1, "min_delta": 0.1}, "min_delta: says what 'patience' waits for. Give 'patience'"),
        ({"target_accuracy": 90}, "less than or equal to 1"),
        ({"target_accuracy": 0}, "greater than 0"),
        ({"patience": 0}, "greater than or equal to 1"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(stop, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Training(steps=1, stop_early=stop)
