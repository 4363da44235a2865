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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("epochs", 0),
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("warmup_steps", -1),
        ("max_grad_norm", 0),
        ("num_validations", 0),
        ("validation_rows", 0),
        ("max_tokens", 7),
        ("select_best_by", "best"),
        ("schedule", "step"),
        ("learning_speed", 1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(key, value):
    length = {} if key in ("steps", "epochs") else {"steps": 1}
    with pytest.raises(ValidationError, match=key):
        Training(**length, **{key: value})


def test_settings_survive_their_json():
    training = Training(
        epochs=1.5, batch_size=8, micro_batch_size=2, betas=(0.8, 0.9), select_best_by="accuracy"
    )
    assert Training.model_validate(training.canonical()) == training
