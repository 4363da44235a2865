"""Which weights a training ends with, and where it stops because they are broken."""

import pytest
import torch
from plain_training import log_of, same, validation_loss, weights

from copra.training.batches import epoch_batches
from copra.training.validation import BEST, Validation
from copra.utils.errors import CopraError


def overfitting(make_trainer, **settings):
    """A trainer that learns six questions and is validated on them with the answers of others."""
    trainer = make_trainer(steps=48, batch_size=6, learning_rate=1e-2, num_validations=12, **settings)
    questions, answers = trainer.validation, trainer.validation[1:] + trainer.validation[:1]
    trainer.rows = questions
    trainer.validation = [
        type(q)(q.id, q.question, a.steps, a.answer) for q, a in zip(questions, answers, strict=True)
    ]
    return trainer


@pytest.mark.slow
def test_the_lowest_validation_loss_selects_the_weights(make_trainer):
    trainer = overfitting(make_trainer, select_best_by="loss")
    record = trainer.run()
    losses = {line["step"]: line["validation_loss"] for line in log_of(trainer) if "validation_loss" in line}
    assert list(losses) == list(range(4, 49, 4))
    best = min(losses, key=losses.get)
    assert losses[48] > 1.1 * losses[best]
    assert 4 < best < 48
    assert record["selected"] == {"by": "loss", "step": best, "value": losses[best]}
    assert validation_loss(trainer) == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.slow
def test_the_last_weights_are_kept_where_asked(make_trainer):
    trainer = overfitting(make_trainer, select_best_by="last")
    record = trainer.run()
    last = log_of(trainer)[-1]
    assert record["selected"] == {"by": "last", "step": 48, "value": last["validation_loss"]}
    assert validation_loss(trainer) == pytest.approx(last["validation_loss"], rel=1e-5)
    assert not (trainer.state / BEST).exists()


def test_the_highest_accuracy_selects_the_weights(make_trainer):
    seen = []

    def accuracy() -> float:
        assert not trainer.model.training
        seen.append(weights(trainer.model))
        return [0.0, 0.5, 0.25, 0.5, 0.3][len(seen) - 1]

    trainer = make_trainer(
        architecture="gpt2",
        dropout=0.1,
        accuracy=accuracy,
        select_best_by="accuracy",
        num_validations=5,
    )
    record = trainer.run()
    # Of two equal ones the earlier.
    assert record["selected"] == {"by": "accuracy", "step": 4, "value": 0.5}
    assert same(weights(trainer.model), seen[1])
    assert not same(seen[1], seen[3])


SELECTED = {
    "codi": {"stage": "codi"},
    "explained": {"stage": "explained", "architecture": "gpt2"},
    "coupled": {"stage": "kd.2"},
    "adapters": {"stage": "codi", "lora": {"rank": 3}},
    "adapters on gpt2": {"stage": "explained", "architecture": "gpt2", "tied": False, "lora": {"rank": 3}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by"), zip(SELECTED, ["loss", "accuracy", "loss", "accuracy", "loss"], strict=True)
)
def test_parts_and_adapters_are_those_of_the_best_step(make_trainer, monkeypatch, name, by):
    """Adapters are merged into the best weights, not into the last ones."""
    seen, tokens = {}, torch.arange(1, 15)[None]
    trainer = make_trainer(
        **SELECTED[name],
        accuracy=lambda: [0.1, 0.5, 0.2][len(seen) - 1],
        select_best_by=by,
        num_validations=3,
    )
    validate = Validation.run

    def look(self, loss_module, reasoner, step):
        # So that the best loss is not the last one.
        if step == 10:
            with torch.no_grad():
                for parameter in reasoner.parameters():
                    if parameter.requires_grad:
                        parameter += 0.2 * torch.randn_like(parameter)
        reasoner.eval()
        with torch.no_grad():
            seen[step] = trainer.model(tokens).logits, weights(trainer.extra_modules)
        return validate(self, loss_module, reasoner, step)

    monkeypatch.setattr(Validation, "run", look)
    record = trainer.run()
    assert list(seen) == [4, 7, 10]
    assert record["selected"]["step"] == 7
    logits, extra_modules = seen[7]
    assert same(weights(trainer.extra_modules), extra_modules)
    trainer.model.eval()
    found = trainer.model(tokens).logits
    assert (
        torch.allclose(found, logits, atol=1e-5) if "lora" in SELECTED[name] else torch.equal(found, logits)
    )
    for step in (4, 10):
        assert not torch.allclose(found, seen[step][0], atol=1e-4)
        assert not same(extra_modules, seen[step][1])


def test_a_stage_that_cannot_answer_is_selected_by_its_loss(make_trainer):
    """No accuracy is asked for: the fixture's raises an error."""
    trainer = make_trainer("kd.0", select_best_by="accuracy", num_validations=3)
    record = trainer.run()
    losses = {line["step"]: line["validation_loss"] for line in log_of(trainer) if "validation_loss" in line}
    best = min(losses, key=losses.get)
    assert record["selected"] == {"by": "loss", "step": best, "value": losses[best]}


@pytest.mark.parametrize(("last", "step"), [([0.2, 0.1], 9), ([0.1, 0.2], 10)])
def test_a_stage_that_removes_tokens_is_selected_after_its_last_removal(make_trainer, last, step):
    """Accuracy falls with each token, and the last of five goes at step 9 of 10."""
    values = [0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, *last]
    seen = []

    def accuracy() -> float:
        seen.append(weights(trainer.model))
        return values[len(seen) - 1]

    trainer = make_trainer("removing", accuracy=accuracy, select_best_by="accuracy", num_validations=10)
    record = trainer.run()
    assert record["selected"] == {"by": "accuracy", "step": step, "value": 0.2}
    assert same(weights(trainer.model), seen[step - 1])


def test_the_last_stage_of_a_removal_is_selected_among_all_validations(make_trainer):
    values = iter([0.1, 0.4, 0.3, 0.2, 0.2])
    trainer = make_trainer(
        "removed", accuracy=lambda: next(values), select_best_by="accuracy", num_validations=5
    )
    assert trainer.run()["selected"] == {"by": "accuracy", "step": 4, "value": 0.4}


def test_a_first_accuracy_of_zero_is_the_best_so_far(make_trainer):
    record = make_trainer(accuracy=lambda: 0.0, select_best_by="accuracy", num_validations=5).run()
    assert record["selected"] == {"by": "accuracy", "step": 2, "value": 0.0}


def test_a_loss_that_is_no_number_stops_and_names_step_and_rows(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = float("nan")
    (batch, *_) = epoch_batches(trainer.samples.of_epoch(0), 4, 0, 0)
    with pytest.raises(CopraError, match=r"^step 1: loss nan.*learning_rate") as error:
        trainer.run()
    assert f"Batch of rows {', '.join(sample.id for sample in batch)}. Lower" in str(error.value)


def test_an_exploding_loss_stops_before_the_step_is_taken(make_trainer, gradients):
    trainer = make_trainer(learning_rate=30.0, batch_size=9)
    samples = trainer.samples.of_epoch(0)
    batches = [batch for epoch in range(5) for batch in epoch_batches(samples, 9, 0, epoch)]
    with pytest.raises(CopraError, match=r"^step \d: loss \d") as error:
        trainer.run()
    step = int(str(error.value)[5])
    assert step > 1
    # Nine rows, of which eight are named.
    assert f"Batch of rows {', '.join(sample.id for sample in batches[step - 1][:8])}, .... Lower" in str(
        error.value
    )
    assert len(gradients) == step - 1
    assert all(value.isfinite().all() for value in weights(trainer.model).values())


def test_a_gradient_that_is_not_finite_stops(make_trainer, gradients):
    trainer = make_trainer()
    before = weights(trainer.model)
    trainer.model.base_model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(CopraError, match=r"^step 1: loss 3\.\d+, gradient norm (inf|nan)"):
        trainer.run()
    assert gradients == []
    assert same(weights(trainer.model), before)


@pytest.mark.slow
def test_a_last_step_that_breaks_the_model_is_seen_too(make_trainer):
    trainer = make_trainer(steps=1, learning_rate=1e38, num_validations=1)
    with pytest.raises(CopraError, match=r"^step 1: validation loss (nan|inf)"):
        trainer.run()
