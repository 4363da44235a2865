"""The samples of trainings on a tiny task, which rows they leave out, and how many steps they make."""

import pytest
import torch
from plain_training import log_of, plain_loss, validation_samples

from copra.utils.errors import CopraError


def test_rows_that_are_too_long_are_left_out_and_counted(make_trainer):
    # Rows of 1, 2 and 3 steps have 14, 22 and 30 tokens (questions of 5, 7, 9; 6 a step; answers of 3).
    trainer = make_trainer(max_tokens=22, epochs=2, batch_size=6, num_validations=1)
    assert sorted({len(sample.tokens) for sample in make_trainer().samples.first}) == [14, 22, 30]
    record = trainer.run()
    assert (record["rows"], record["left_out_too_long"], record["steps"]) == (12, 6, 4)
    assert record["work"]["model"]["tokens"] == 2 * 6 * (14 + 22)
    assert record["work"]["model"]["context"] == 2 * 6 * (14**2 + 22**2)
    assert record["work"]["model"]["supervised"] == 2 * 6 * (9 + 15)
    # The validation split is held to the same length.
    kept = [sample for sample in validation_samples(trainer) if len(sample.tokens) <= 22]
    assert 0 < len(kept) < len(trainer.validation)
    with torch.no_grad():
        expected = plain_loss(trainer.model, kept).item()
    assert log_of(trainer)[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_no_row_that_fits_is_an_error(make_trainer):
    with pytest.raises(CopraError, match=r"no train row fits training.max_tokens = 10 .*shortest has 14"):
        make_trainer(max_tokens=10).run()
    trainer = make_trainer(max_tokens=22)
    trainer.validation = [row for row in trainer.validation if len(row.steps) == 3]
    with pytest.raises(CopraError, match=r"no validation row fits training.max_tokens = 22 .*has 30"):
        trainer.run()


def test_what_was_trained_on_is_counted(make_trainer):
    """One latent in the place of a first step of six tokens, and two markers; three epochs of all rows."""
    record = make_trainer("coconut", epochs=3).run()
    lengths = [n + 2 + 1 - 6 for n in (14, 22, 30)]
    assert (record["rows"], record["left_out_too_long"], record["steps"]) == (18, 0, 3 * 5)
    assert record["work"]["model"]["tokens"] == 3 * 6 * sum(lengths)
    assert record["work"]["model"]["context"] == 3 * 6 * sum(n * n for n in lengths)
    assert record["work"]["model"]["supervised"] == 3 * 6 * (3 + 9 + 15)


@pytest.mark.parametrize(
    ("length", "steps"), [({"epochs": 1}, 5), ({"epochs": 0.4}, 2), ({"epochs": 0.01}, 1), ({"steps": 7}, 7)]
)
def test_the_length_of_a_training(make_trainer, length, steps):
    """18 rows in batches of four: five batches an epoch."""
    trainer = make_trainer(**length, num_validations=20)
    assert trainer.samples.total_steps() == steps
    assert trainer.run()["steps"] == steps
    assert [line["step"] for line in log_of(trainer)] == list(range(1, steps + 1))
    assert "validation_loss" in log_of(trainer)[-1]


def test_mixed_stages_are_drawn_anew_each_epoch(make_trainer):
    trainer = make_trainer("mixed")
    counts = [[sample.n_latents for sample in trainer.samples.of_epoch(epoch)] for epoch in (0, 1, 0)]
    assert counts[0] == counts[2] != counts[1]
    assert set(counts[0]) == {0, 1, 2}
    seen = []
    optimize = trainer._optimize
    trainer._optimize = lambda *a: (seen.append([(s.id, s.n_latents) for s in a[-2]]), optimize(*a))[1]
    trainer.run()
    for epoch in (0, 1):
        drawn = {sample.id: sample.n_latents for sample in trainer.samples.of_epoch(epoch)}
        used = dict(pair for batch in seen[5 * epoch : 5 * epoch + 5] for pair in batch)
        assert used == drawn
