"""What the loop does for methods with extra modules, teachers and several terms in their loss."""

import copy

import pytest
import torch
from plain_training import log_of, same, weights
from safetensors.torch import load_file

from copra.data.batch import collate
from copra.methods.reasoning_model import ReasoningModel
from copra.training.batches import epoch_batches
from copra.training.state import TENSORS

CHANGING = {
    "kd.0": {"model", "mind_reader"},
    "kd.1": {"emulator"},
    "kd.2": {"model", "mind_reader", "emulator"},
    "codi": {"model", "projection"},
    "explained": {"model", "step_decoder"},
    "healed": {"model"},
    "healed latents": {"model", "projection"},
}


def modules(trainer) -> dict[str, torch.nn.Module]:
    return {"model": trainer.model, **trainer.extra_modules}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "architecture"), [("kd.1", "gpt2"), *((stage, "llama") for stage in CHANGING)]
)
def test_what_is_frozen_stays_bit_for_bit(make_trainer, stage, architecture):
    trainer = make_trainer(stage, architecture=architecture, weight_decay=0.5, select_best_by="loss")
    before = {name: weights(module) for name, module in modules(trainer).items()}
    trainer.run()
    after = {name: weights(module) for name, module in modules(trainer).items()}
    assert {name for name in before if not same(before[name], after[name])} == CHANGING[stage]
    assert all(p.requires_grad for module in modules(trainer).values() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "architecture"),
    [("kd.0", "gpt2"), ("kd.1", "llama"), ("healed", "gpt2"), ("healed latents", "llama")],
)
def test_a_teacher_is_neither_trained_nor_saved(make_trainer, stage, architecture):
    dropout = 0.3 if architecture == "gpt2" else 0.0
    trainer = make_trainer(
        stage, architecture=architecture, dropout=dropout, weight_decay=0.5, save_every=-1.0
    )
    teacher = trainer.teacher.train()
    before, modes = weights(teacher), set()
    teacher.model.base_model.register_forward_pre_hook(lambda module, *_: modes.add(module.training))
    trainer.run()
    assert same(weights(teacher), before)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert modes == {False}
    # The state holds the student and its extra modules once each (a tied head is the embedding).
    *_, state = sorted(trainer.state.glob("step-*"))
    saved = load_file(state / TENSORS)
    held = sum(value.numel() for name, value in saved.items() if name.startswith("model."))
    assert held == sum(p.numel() for module in modules(trainer).values() for p in module.parameters())
    assert not any("teacher" in name for name in saved)


@pytest.mark.parametrize(
    ("stage", "on"), [("kd.0", False), ("kd.1", False), ("kd.2", False), ("codi", True), ("healed", True)]
)
def test_dropout_is_on_only_where_the_method_trains_with_it(make_trainer, stage, on):
    trainer = make_trainer(stage, architecture="gpt2", dropout=0.4, steps=2)
    modes = set()
    for module in modules(trainer).values():
        module.train(not on)
    optimize = trainer._optimize

    def look(*arguments):
        line = optimize(*arguments)
        modes.update(part.training for module in modules(trainer).values() for part in module.modules())
        return line

    trainer._optimize = look
    trainer.run()
    assert modes == {on}


def losses(trainer, samples) -> dict[str, float]:
    """The means of the terms of a batch, at once."""
    reasoner = ReasoningModel(trainer.model, trainer.extra_modules, trainer.teacher)
    with torch.no_grad():
        terms = trainer.stage.loss(reasoner, collate(samples, trainer.pad))
    return {name: float(total) / int(count) for name, (total, count) in terms.items()}


TERMS = {
    "cot": {},
    "kd.1": {},
    "codi": {"cross_entropy": 1.0, "teacher_cross_entropy": 1.0, "self_distillation": 1.0},
    "explained": {"cross_entropy": 1.0, "explanation": 1.0},
    "healed": {"cross_entropy": 0.0, "distillation": 1.0},
    "healed latents": {"cross_entropy": 0.5, "distillation": 2.0},
}


@pytest.mark.parametrize("stage", TERMS)
def test_the_terms_of_a_loss_are_logged_where_there_are_several(make_trainer, stage):
    trainer = make_trainer(stage, steps=2, learning_rate=1e-12)
    (first, second, *_) = epoch_batches(trainer.samples.of_epoch(0), 4, 0, 0)
    expected = [losses(trainer, batch) for batch in (first, second)]
    trainer.run()
    for line, terms in zip(log_of(trainer), expected, strict=True):
        assert {"step", "loss", "gradient_norm", "learning_rate"} | set(TERMS[stage]) <= set(line)
        for name, weight in TERMS[stage].items():
            assert weight == trainer.stage.loss_weights()[name]
            assert line[name] == pytest.approx(terms[name], rel=1e-5)
        if TERMS[stage]:
            assert line["loss"] == pytest.approx(sum(w * line[n] for n, w in TERMS[stage].items()), rel=1e-5)
        else:
            assert not {"cross_entropy", "emulation"} & set(line)


@pytest.mark.parametrize("stage", TERMS)
def test_validation_has_the_same_terms(make_trainer, stage):
    """Rows of different lengths in batches of four, so that a mean of means would be another number."""
    trainer = make_trainer(stage, steps=2)
    trainer.run()
    (first, last), samples = log_of(trainer), trainer.samples.validation
    expected = losses(trainer, samples)
    for name, weight in TERMS[stage].items():
        if name != "self_distillation":
            assert last[f"validation_{name}"] == pytest.approx(expected[name], rel=1e-5)
        assert f"validation_{name}" in first
        assert weight == trainer.stage.loss_weights()[name]
    if TERMS[stage]:
        loss = sum(weight * last[f"validation_{name}"] for name, weight in TERMS[stage].items())
        assert last["validation_loss"] == pytest.approx(loss, rel=1e-6)
    else:
        assert {name for name in last if name.startswith("validation")} == {"validation_loss"}


def test_terms_are_weighed_by_their_counts_over_micro_batches(make_trainer):
    """But the distance of CODI has the standard deviation of a micro-batch in it."""
    trainer = make_trainer("codi", steps=1, batch_size=6, micro_batch_size=2, learning_rate=1e-12)
    (batch, *_) = epoch_batches(trainer.samples.of_epoch(0), 6, 0, 0)
    whole = losses(trainer, batch)
    extra_modules = [losses(trainer, batch[i : i + 2])["self_distillation"] for i in (0, 2, 4)]
    trainer.run()
    (line,) = log_of(trainer)
    for name in ("cross_entropy", "teacher_cross_entropy"):
        assert line[name] == pytest.approx(whole[name], rel=1e-5)
    assert line["self_distillation"] == pytest.approx(sum(extra_modules) / 3, rel=1e-5)
    assert line["self_distillation"] != pytest.approx(whole["self_distillation"], rel=1e-3)


@torch.no_grad()
def plain_norm(trainer) -> float:
    """Mean norm of the hidden states that the latents of the validation split are made from, row by row."""
    embedding, norms = trainer.model.get_input_embeddings().weight, []
    for sample in trainer.samples.validation:
        vectors = [embedding[token] for token in sample.tokens[: sample.first_latent]]
        for _ in range(sample.n_latents):
            inputs = torch.stack(vectors)[None]
            vectors.append(trainer.model.base_model(inputs_embeds=inputs).last_hidden_state[0, -1])
            norms.append(vectors[-1].norm())
    return torch.stack(norms).mean().item()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_norms_of_thoughts_and_embeddings_are_logged_in_validation(make_trainer, architecture):
    trainer = make_trainer("explained", architecture=architecture, num_validations=5, micro_batch_size=2)
    trainer.run()
    looks = [line for line in log_of(trainer) if "validation_loss" in line]
    assert len(looks) == 5
    assert all({"hidden_norm", "embedding_norm"} <= set(line) for line in looks)
    embedding = trainer.model.get_input_embeddings().weight
    assert looks[-1]["embedding_norm"] == pytest.approx(embedding.norm(dim=1).mean().item(), rel=1e-5)
    assert looks[-1]["hidden_norm"] == pytest.approx(plain_norm(trainer), rel=1e-4)


@pytest.mark.parametrize("stage", ["cot", "kd.1"])
def test_without_latents_no_norms_are_logged(make_trainer, stage):
    trainer = make_trainer(stage)
    trainer.run()
    assert not any({"hidden_norm", "embedding_norm"} & set(line) for line in log_of(trainer))


@pytest.mark.parametrize("stage", ["kd.1", "healed"])
def test_a_stage_with_a_teacher_follows_another_teacher_elsewhere(make_trainer, stage):
    """Otherwise the tests above would hold for a teacher that is not listened to."""
    runs = []
    for state in ("one", "two"):
        trainer = make_trainer(stage, state=state, steps=3)
        if state == "two":
            trainer.teacher = ReasoningModel(copy.deepcopy(trainer.model))
        trainer.run()
        runs.append([line["loss"] for line in log_of(trainer)])
    assert runs[0] != runs[1]
