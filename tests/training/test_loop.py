"""The training loop on a tiny task, against a plain loop and by hand."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from plain_training import log_of, plain_loss, same, validation_loss, weights

from copra.training.batches import epoch_batches


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "architecture"), [("cot", "gpt2"), ("coconut", "llama")])
def test_the_loss_falls(make_trainer, stage, architecture):
    trainer = make_trainer(
        stage, architecture=architecture, steps=40, batch_size=9, learning_rate=1e-2, num_validations=1
    )
    record = trainer.run()
    log = log_of(trainer)
    # A fresh model guesses all tokens alike.
    assert log[0]["loss"] == pytest.approx(math.log(trainer.model.config.vocab_size), rel=0.1)
    assert log[-1]["loss"] < 0.45 * log[0]["loss"]
    assert [line["step"] for line in log] == list(range(1, 41))
    assert record["steps"] == 40


def test_steps_equal_those_of_a_plain_loop(make_trainer):
    settings = {"learning_rate": 2e-3, "warmup_steps": 2, "schedule": "linear", "max_grad_norm": 0.5}
    trainer = make_trainer(steps=6, weight_decay=0.1, betas=(0.8, 0.95), **settings)
    plain = make_trainer().model.train()
    samples = trainer.samples.of_epoch(0)
    batches = epoch_batches(samples, 4, 0, 0) + epoch_batches(samples, 4, 0, 1)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1, betas=(0.8, 0.95))
    # Up in two steps, down to zero in four.
    rates = [2e-3 * share for share in (0, 0.5, 1, 0.75, 0.5, 0.25)]
    losses, norms = [], []
    for rate, batch in zip(rates, batches, strict=False):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = plain_loss(plain, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in plain.parameters()])
        losses.append(loss.item())
        norms.append(gradient.norm().item())
        for parameter in plain.parameters():
            parameter.grad *= min(1, 0.5 / gradient.norm())
        optimizer.step()
    trainer.run()
    log = log_of(trainer)
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-5)
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=1e-4)
    assert [line["learning_rate"] for line in log] == pytest.approx(rates)
    assert min(norms) > 0.5
    found = trainer.model.state_dict()
    for name, expected in plain.state_dict().items():
        assert torch.allclose(found[name], expected, rtol=0, atol=2e-5), name


# Shares of the peak rate: up in two steps, then kept, along a line, or along half a cosine (of four).
SCHEDULES = {
    "constant": (0, 0.5, 1, 1, 1, 1),
    "linear": (0, 0.5, 1, 0.75, 0.5, 0.25),
    "cosine": (0, 0.5, *((1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_warms_up_whatever_the_schedule(make_trainer, schedule):
    trainer = make_trainer(steps=6, learning_rate=0.01, warmup_steps=2, schedule=schedule)
    trainer.run()
    expected = [0.01 * share for share in SCHEDULES[schedule]]
    assert [line["learning_rate"] for line in log_of(trainer)] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "architecture"),
    [
        ("mixed", "llama"),
        ("cot", "gpt2"),
        ("explained", "llama"),
        ("codi alone", "llama"),
        ("kd.0", "gpt2"),
        ("kd.1", "llama"),
        ("kd.2", "llama"),
        ("healed latents", "gpt2"),
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer, gradients, stage, architecture):
    """Rows differ in their supervised tokens, so a mean of means would be another gradient."""
    runs = {}
    parts = [{}, *({"micro_batch_size": size} for size in (2, 1)), {"micro_batch_tokens": 50}]
    for number, sizes in enumerate(parts):
        # So small a rate that all runs stay at the same weights.
        trainer = make_trainer(
            stage,
            architecture=architecture,
            state=str(number),
            steps=2,
            batch_size=6,
            **sizes,
            learning_rate=1e-12,
        )
        trainer.run()
        runs[number] = gradients[:], log_of(trainer)
        gradients.clear()
    whole, log = runs[0]
    for number in range(1, len(parts)):
        found, found_log = runs[number]
        for step in range(2):
            assert found_log[step]["loss"] == pytest.approx(log[step]["loss"], rel=1e-6)
            for a, b in zip(found[step], whole[step], strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in whole[0]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "architecture", "dropout"), [("cot", "gpt2", 0.3), ("mixed", "llama", 0)])
def test_seeds_repeat_and_differ(make_trainer, stage, architecture, dropout):
    runs = []
    for number, seed in enumerate((4, 4, 5)):
        trainer = make_trainer(
            stage, architecture=architecture, dropout=dropout, seed=seed, state=str(number)
        )
        torch.manual_seed(number)
        runs.append((trainer.run(), trainer.log_text(), weights(trainer.model)))
    assert runs[0][:2] == runs[1][:2]
    assert same(runs[0][2], runs[1][2])
    assert runs[0][1] != runs[2][1]
    assert not same(runs[0][2], runs[2][2])


def test_dropout_is_on_in_training_and_off_in_validation(make_trainer):
    trainer = make_trainer(architecture="gpt2", dropout=0.5, steps=1, learning_rate=1e-12, batch_size=18)
    trainer.run()
    (line,) = log_of(trainer)
    trainer.model.eval()
    with torch.no_grad():
        assert line["loss"] != pytest.approx(
            plain_loss(trainer.model, trainer.samples.of_epoch(0)).item(), rel=1e-3
        )
    assert line["validation_loss"] == pytest.approx(validation_loss(trainer), rel=1e-5)


@pytest.mark.parametrize(("validations", "steps"), [(1, [10]), (3, [4, 7, 10]), (5, [2, 4, 6, 8, 10])])
def test_validations_are_spaced_evenly_and_end_with_the_last_step(make_trainer, validations, steps):
    trainer = make_trainer(num_validations=validations)
    trainer.run()
    assert [line["step"] for line in log_of(trainer) if "validation_loss" in line] == steps


def test_bfloat16_computes_in_it_and_keeps_float32_weights(make_trainer):
    logs = {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer("coconut", precision=precision, state=precision, steps=4)
        kinds = set()
        layer = trainer.model.base_model.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda _, __, output, kinds=kinds: kinds.add(output.dtype))
        trainer.run()
        AcceleratorState._reset_state(reset_partial_state=True)
        assert kinds == {getattr(torch, precision)}
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        logs[precision] = [line["loss"] for line in log_of(trainer)]
    assert logs["bfloat16"] == pytest.approx(logs["float32"], rel=0.02)
    assert logs["bfloat16"] != logs["float32"]
