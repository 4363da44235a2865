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
