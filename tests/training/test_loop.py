"""The training loop on a tiny task, against a plain loop and by hand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from copra.errors import CopraError
from copra.reasoning.layout import IGNORED
from copra.training.batches import epoch_batches
from copra.training.loop import BEST, LOG


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def log_of(trainer) -> list[dict]:
    return [json.loads(line) for line in trainer.log_text().splitlines()]


def plain_loss(model, samples) -> torch.Tensor:
    """Mean over all supervised positions, row by row, by transformers' own loss."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        n = sum(label != IGNORED for label in sample.labels)
        output = model(input_ids=torch.tensor([sample.tokens]), labels=torch.tensor([sample.labels]))
        total, count = total + output.loss * n, count + n
    return total / count


def validation_samples(trainer):
    return [trainer.stage.lay_out(row, trainer.markers) for row in trainer.validation]


@torch.no_grad()
def validation_loss(trainer) -> float:
    trainer.model.eval()
    return plain_loss(trainer.model, validation_samples(trainer)).item()


@pytest.mark.parametrize("stage", ["cot", "coconut"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_loss_falls(make_trainer, stage, architecture):
    trainer = make_trainer(
        stage, architecture=architecture, steps=40, batch_size=9, learning_rate=1e-2, validations=1
    )
    record = trainer.run()
    log = log_of(trainer)
    # A fresh model guesses all tokens alike.
    assert log[0]["loss"] == pytest.approx(math.log(trainer.model.config.vocab_size), rel=0.1)
    assert log[-1]["loss"] < 0.45 * log[0]["loss"]
    assert [line["step"] for line in log] == list(range(1, 41))
    assert record["steps"] == 40


def test_steps_equal_those_of_a_plain_loop(make_trainer):
    settings = {"learning_rate": 2e-3, "warmup_steps": 2, "schedule": "linear", "clip_norm": 0.5}
    trainer = make_trainer(steps=6, weight_decay=0.1, betas=(0.8, 0.95), **settings)
    plain = make_trainer().model.train()
    samples, _ = trainer.samples(0)
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


@pytest.mark.parametrize(("stage", "architecture"), [("cot", "llama"), ("mixed", "llama"), ("cot", "gpt2")])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer, gradients, stage, architecture):
    """Rows differ in their supervised tokens, so a mean of means would be another gradient."""
    runs = {}
    for size in (None, 6, 2, 1):
        # So small a rate that all runs stay at the same weights.
        trainer = make_trainer(
            stage,
            architecture=architecture,
            state=str(size),
            steps=2,
            batch_size=6,
            micro_batch_size=size,
            learning_rate=1e-12,
        )
        trainer.run()
        runs[size] = gradients[:], log_of(trainer)
        gradients.clear()
    whole, log = runs[None]
    for size in (6, 2, 1):
        found, found_log = runs[size]
        for step in range(2):
            assert found_log[step]["loss"] == pytest.approx(log[step]["loss"], rel=1e-6)
            for a, b in zip(found[step], whole[step], strict=True):
                assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in whole[0]) > 1e-2


def break_off(trainer, monkeypatch, *, saved: int, at: int) -> None:
    """Run until the weights of step `at` are made, and die; only the state of step `saved` is on disk."""
    from copra.training import loop

    save, optimise = loop.save_state, trainer._optimise

    def save_one(folder, step, *rest):
        if step == saved:
            save(folder, step, *rest)

    def die(*arguments):
        line = optimise(*arguments)
        if arguments[-1] == at:
            raise KeyboardInterrupt
        return line

    trainer._optimise = die
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", save_one)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()


def steps_taken(trainer) -> list[int]:
    """Filled with the numbers of the steps that a run really takes."""
    taken, optimise = [], trainer._optimise

    def count(*arguments):
        taken.append(arguments[-1])
        return optimise(*arguments)

    trainer._optimise = count
    return taken


RESUMED = {
    "cot": {"stage": "cot"},
    "coconut": {"stage": "coconut", "schedule": "cosine", "warmup_steps": 6},
    "stage mixing": {"stage": "mixed", "micro_batch_size": 2},
    "gpt2 with dropout": {"stage": "cot", "architecture": "gpt2", "dropout": 0.2},
    "gpt2 with dropout and mixing": {"stage": "mixed", "architecture": "gpt2", "dropout": 0.2},
    "best by loss": {"stage": "cot", "select": "loss", "validations": 5, "learning_rate": 3e-2},
}


@pytest.mark.parametrize("name", RESUMED)
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
    settings = {"select": "accuracy", "validations": 5, "save_every": -1.0, "state": "broken"}
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
        "select": "loss",
        "validations": 5,
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
    from copra.training import loop

    clock = iter(range(0, 10_000, 10))
    saved = []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(loop, "save_state", lambda folder, step, *_: saved.append(step))
    make_trainer(save_every=25, state="a").run()
    # Ten seconds a look at the clock, and one more look after a save: every third step, never the last.
    assert saved == [3, 6, 9]
    saved.clear()
    make_trainer(save_every=300, state="b").run()
    assert saved == []


def test_forgetting_removes_the_state_whole(make_trainer):
    trainer = make_trainer(select="loss", save_every=-1.0)
    trainer.run()
    assert {path.name for path in trainer.state.iterdir()} == {LOG, BEST, "step-000000009"}
    trainer.forget()
    assert not trainer.state.exists()


def test_a_loss_that_is_no_number_stops_and_names_step_and_rows(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = float("nan")
    (batch, *_) = epoch_batches(trainer.samples(0)[0], 4, 0, 0)
    with pytest.raises(CopraError, match=r"^step 1: loss nan.*learning_rate") as error:
        trainer.run()
    assert f"Batch of rows {', '.join(sample.id for sample in batch)}. Lower" in str(error.value)


def test_an_exploding_loss_stops_before_the_step_is_taken(make_trainer, gradients):
    trainer = make_trainer(learning_rate=1.0, batch_size=9)
    samples, _ = trainer.samples(0)
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


def test_a_last_step_that_breaks_the_model_is_seen_too(make_trainer):
    trainer = make_trainer(steps=1, learning_rate=1e38, validations=1)
    with pytest.raises(CopraError, match=r"^step 1: validation loss (nan|inf)"):
        trainer.run()


def overfitting(make_trainer, **settings):
    """A trainer that learns six questions and is validated on them with the answers of others."""
    trainer = make_trainer(steps=48, batch_size=6, learning_rate=1e-2, validations=12, **settings)
    questions, answers = trainer.validation, trainer.validation[1:] + trainer.validation[:1]
    trainer.rows = questions
    trainer.validation = [
        type(q)(q.id, q.question, a.steps, a.answer) for q, a in zip(questions, answers, strict=True)
    ]
    return trainer


def test_the_lowest_validation_loss_selects_the_weights(make_trainer):
    trainer = overfitting(make_trainer, select="loss")
    record = trainer.run()
    losses = {line["step"]: line["validation_loss"] for line in log_of(trainer) if "validation_loss" in line}
    assert list(losses) == list(range(4, 49, 4))
    best = min(losses, key=losses.get)
    assert losses[48] > 1.1 * losses[best]
    assert 4 < best < 48
    assert record["selected"] == {"by": "loss", "step": best, "value": losses[best]}
    assert validation_loss(trainer) == pytest.approx(losses[best], rel=1e-5)


def test_the_last_weights_are_kept_where_asked(make_trainer):
    trainer = overfitting(make_trainer, select="last")
    record = trainer.run()
    last = log_of(trainer)[-1]
    assert record["selected"] == {"by": "last", "step": 48, "value": last["validation_loss"]}
    assert validation_loss(trainer) == pytest.approx(last["validation_loss"], rel=1e-5)
    assert not (trainer.state / BEST).exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_highest_accuracy_selects_the_weights(make_trainer, architecture):
    seen = []

    def accuracy() -> float:
        assert not trainer.model.training
        seen.append(weights(trainer.model))
        return [0.0, 0.5, 0.25, 0.5, 0.3][len(seen) - 1]

    trainer = make_trainer(
        architecture=architecture, dropout=0.1, accuracy=accuracy, select="accuracy", validations=5
    )
    record = trainer.run()
    # Of two equal ones the earlier.
    assert record["selected"] == {"by": "accuracy", "step": 4, "value": 0.5}
    assert same(weights(trainer.model), seen[1])
    assert not same(seen[1], seen[3])


def test_a_first_accuracy_of_zero_is_the_best_so_far(make_trainer):
    record = make_trainer(accuracy=lambda: 0.0, select="accuracy", validations=5).run()
    assert record["selected"] == {"by": "accuracy", "step": 2, "value": 0.0}


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
            plain_loss(trainer.model, trainer.samples(0)[0]).item(), rel=1e-3
        )
    assert line["validation_loss"] == pytest.approx(validation_loss(trainer), rel=1e-5)


def test_rows_that_are_too_long_are_left_out_and_counted(make_trainer):
    # Rows of 1, 2 and 3 steps have 14, 22 and 30 tokens (questions of 5, 7, 9; 6 a step; answers of 3).
    trainer = make_trainer(max_tokens=22, epochs=2, batch_size=6, validations=1)
    assert sorted({len(sample.tokens) for sample in make_trainer().samples(0)[0]}) == [14, 22, 30]
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
    trainer = make_trainer(**length, validations=20)
    assert trainer.total_steps(18) == steps
    assert trainer.run()["steps"] == steps
    assert [line["step"] for line in log_of(trainer)] == list(range(1, steps + 1))
    assert "validation_loss" in log_of(trainer)[-1]


@pytest.mark.parametrize(("validations", "steps"), [(1, [10]), (3, [4, 7, 10]), (5, [2, 4, 6, 8, 10])])
def test_validations_are_spaced_evenly_and_end_with_the_last_step(make_trainer, validations, steps):
    trainer = make_trainer(validations=validations)
    trainer.run()
    assert [line["step"] for line in log_of(trainer) if "validation_loss" in line] == steps


def test_mixed_stages_are_drawn_anew_each_epoch(make_trainer):
    trainer = make_trainer("mixed")
    counts = [[sample.n_latents for sample in trainer.samples(epoch)[0]] for epoch in (0, 1, 0)]
    assert counts[0] == counts[2] != counts[1]
    assert set(counts[0]) == {0, 1, 2}
    seen = []
    optimise = trainer._optimise
    trainer._optimise = lambda *a: (seen.append([(s.id, s.n_latents) for s in a[3]]), optimise(*a))[1]
    trainer.run()
    for epoch in (0, 1):
        drawn = {sample.id: sample.n_latents for sample in trainer.samples(epoch)[0]}
        used = dict(pair for batch in seen[5 * epoch : 5 * epoch + 5] for pair in batch)
        assert used == drawn


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
