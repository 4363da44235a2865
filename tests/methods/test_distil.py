"""Distillation against loops over single positions, and against the stages that it is added to."""

import copy
import json
import math
import re

import pytest
import torch
from pydantic import ValidationError
from references import (
    MARKERS,
    PAD,
    another,
    assert_same_loss,
    draw_rows,
    gradients,
    plain_cross_entropy,
    plain_hidden,
    plain_inputs,
    projected,
)

from copra.data.batch import collate
from copra.data.sequences import IGNORED
from copra.methods import METHODS
from copra.methods.loss_functions import divergence
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules

ROWS = ((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))


def method(kind, distil=None, **settings):
    return METHODS[kind](kind=kind, training={"steps": 1}, distil=distil, **settings)


def stages(kind, distil=None, **settings):
    made = method(kind, distil, **settings)
    return [made.resolved_stages()[number] for number in made.stages()]


def plain_divergence(student, teacher, temperature):
    """T^2 sum of p log(p / q) over the words of one position, from logits [V]."""
    p, q = (torch.exp(logits / temperature) for logits in (teacher, student))
    p, q = p / p.sum(), q / q.sum()
    return temperature**2 * (p * torch.log(p / q)).sum()


def test_a_divergence_by_hand():
    """A teacher with 1/4 and 3/4 for two words, and a student with a half for each."""
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[2.0, 2.0]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    # At T = 2 the teacher's odds are the square root of 3.
    p = 1 / (1 + math.sqrt(3))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert divergence(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_and_gradient_equal_those_of_a_loop(temperature):
    """The gradient for a logit is T (q - p)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 6, 20, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    ours = divergence(student.float(), teacher.float(), temperature)
    (gradient,) = torch.autograd.grad(ours, student)
    plain = sum(plain_divergence(s, t, temperature) for s, t in zip(student, teacher, strict=True))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(plain, student)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    by_hand = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert torch.allclose(expected, by_hand, rtol=1e-9, atol=1e-12)


def feed_of(reasoner, stage):
    """How a hidden state becomes a latent's input."""
    if stage.latent_input == "projected":
        return projected(reasoner.extra_modules["projection"])
    if stage.latent_input == "raw":
        return lambda hidden: hidden
    norm = reasoner.model.get_input_embeddings().weight.detach().norm(dim=1).mean()
    return lambda hidden: hidden * norm / hidden.norm()


def plain_terms(reasoner, stage, samples):
    """Cross-entropy and distillation of a stage with nothing else in its loss, place by place."""
    distil, way = stage.distil, (stage.thought, feed_of(reasoner, stage), getattr(stage, "iterations", None))
    sums, count = {"cross_entropy": 0.0, "distillation": 0.0}, 0
    for sample in samples:
        hidden = plain_hidden(reasoner.model, sample, *way)
        sums["cross_entropy"] += plain_cross_entropy(reasoner.model, hidden, sample.labels)
        teacher = reasoner.teacher
        known = plain_hidden(teacher.model, sample, way[0], feed_of(teacher, stage), way[2]).detach()
        for place, label in enumerate(sample.labels):
            if label != IGNORED:
                logits = reasoner.model.get_output_embeddings().weight @ hidden[place - 1]
                target = teacher.model.get_output_embeddings().weight @ known[place - 1]
                sums["distillation"] += plain_divergence(logits, target.detach(), distil.temperature)
                count += 1
    weights = {"cross_entropy": distil.task_weight, "distillation": distil.weight}
    return {name: (weights[name], total, count) for name, total in sums.items()}


def thinker_of(model, teacher, stage):
    """A student and a teacher, each with extra modules of its own."""
    torch.manual_seed(5)
    made = ReasoningModel(teacher, make_extra_modules(teacher, stage.extra_modules()))
    return ReasoningModel(model, make_extra_modules(model, stage.extra_modules()), made)


def samples_of(stage):
    return [stage.lay_out(row, MARKERS) for row in draw_rows(*ROWS)]


SOFT = {"temperature": 2.0, "weight": 3.0}
LATENTS = {"max_latent_stage": 2, "latents_per_step": 2}
# The kind, the stage's place, and settings.
TAUGHT = [
    ("no_cot", 0, {"distil": {}}),
    ("cot", 0, {"distil": SOFT}),
    ("cot", 0, {"distil": {**SOFT, "task_weight": 0.5}}),
    ("scratchpad", 1, {"distil": {}}),
    ("pause", 0, {"distil": SOFT, "pauses": 2}),
    ("icot_si", 0, {"distil": {"task_weight": 1.0}}),
    ("coconut", 1, {"distil": {}, **LATENTS}),
    ("coconut", 3, {"distil": {**SOFT, "task_weight": 0.5}, **LATENTS}),
    ("coconut", 3, {"distil": {}, "latent_input": "scaled", **LATENTS}),
    ("coconut", 3, {"distil": {"task_weight": 1.0}, "latent_input": "projected", **LATENTS}),
    ("coconut", 3, {"distil": {}, "thought": "embedding", **LATENTS}),
    ("codi", 0, {"distil": SOFT, "latents": 3}),
    ("codi", 0, {"distil": {}, "latents": 3, "iterations": 2}),
]


@pytest.mark.parametrize(("kind", "place", "settings"), TAUGHT)
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, make_model, kind, place, settings):
    """A teacher of another shape, with latents of its own; rows of unequal lengths side by side."""
    stage, samples = stages(kind, **settings)[place], samples_of(stages(kind, **settings)[place])
    other = "llama" if any_model.config.model_type.endswith("gpt2") else "gpt2"
    teacher = another(make_model(other, layers=4))
    reasoner = thinker_of(any_model, teacher, stage)
    expected = plain_terms(reasoner, stage, samples)
    assert expected["distillation"][1].item() > 0.1
    before = copy.deepcopy(reasoner.teacher.state_dict())
    # In float32 two predictions differ by more than rounding of either, and latents carry that on.
    reached = assert_same_loss(stage, reasoner, samples, expected, 1e-5)
    assert set(reached) == {name for name, _ in reasoner.named_parameters()}
    after = reasoner.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in reasoner.teacher.parameters())


OWN = [
    ("cot", {}),
    ("icot_si", {}),
    ("coconut", {"auxiliary_decoder": {"weight": 0.5}, **LATENTS}),
    ("codi", {"latents": 3, "auxiliary_decoder": {"decoder": "shared"}, "distillation": 20.0}),
]


@pytest.mark.parametrize(("kind", "settings"), OWN)
def test_beside_distillation_the_own_loss_is_what_it_was(make_model, kind, settings):
    model = make_model("llama")
    plain = stages(kind, **settings)[-1]
    stage = stages(kind, {"weight": 2.0, "task_weight": 0.5}, **settings)[-1]
    samples = samples_of(stage)
    assert samples == samples_of(plain)
    reasoner = thinker_of(model, another(model), stage)
    own, ours = (each.loss(reasoner, collate(samples, PAD)) for each in (plain, stage))
    assert set(ours) == set(own) | {"distillation"}
    for name, (total, count) in own.items():
        assert torch.equal(torch.as_tensor(ours[name][0]), torch.as_tensor(total)), name
        assert ours[name][1] == count
    assert stage.loss_weights() == {n: 0.5 * weight for n, weight in plain.loss_weights().items()} | {
        "distillation": 2.0
    }
    labels = [label for sample in samples for label in sample.labels]
    supervised = sum(label != IGNORED for label in labels)
    assert stage.normalizers(samples) == plain.normalizers(samples) | {"distillation": supervised}
    assert stage.extra_modules() == plain.extra_modules()


def test_alone_only_the_labels_are_watched(make_model):
    """CODI's own chain of thought is not even read, and the cross-entropy has no gradient."""
    model, stage = make_model("llama"), stages("codi", {}, latents=3)[0]
    reasoner, samples = thinker_of(model, another(model), stage), samples_of(stage)
    read = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, settings: read.append(settings["inputs_embeds"].shape[1]), with_kwargs=True
    )
    terms = stage.loss(reasoner, collate(samples, PAD))
    assert sum(read) == max(s.first_latent for s in samples) + 3 + 1 + 3
    assert set(terms) - {"hidden_norm", "embedding_norm"} == {"cross_entropy", "distillation"}
    assert not terms["cross_entropy"][0].requires_grad
    assert terms["distillation"][0].requires_grad
    assert stage.loss_weights() == {"cross_entropy": 0.0, "distillation": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "place"), [("cot", 0), ("coconut", 3), ("codi", 0)])
def test_nothing_is_to_be_learned_from_oneself(any_model, kind, place, temperature):
    stage = stages(kind, {"temperature": temperature})[place]
    extra_modules = make_extra_modules(any_model, stage.extra_modules())
    reasoner = ReasoningModel(
        any_model, extra_modules, ReasoningModel(copy.deepcopy(any_model), copy.deepcopy(extra_modules))
    )
    terms = stage.loss(reasoner, collate(samples_of(stage), PAD))
    total, count = terms["distillation"]
    assert (total.item(), count) == (0.0, terms["cross_entropy"][1])
    # The gradient is that of rounding: any other loss has one that is far larger.
    none, beside = gradients(reasoner, total), stages(kind, {"task_weight": 1.0})[place]
    some = gradients(reasoner, beside.loss(reasoner, collate(samples_of(stage), PAD))["cross_entropy"][0])
    largest = max(gradient.norm() for gradient in some.values())
    assert all(gradient.norm() < 1e-5 * largest for gradient in none.values())


def test_a_teachers_latents_are_its_own(make_model):
    """Fed with the student's, it would say something else."""
    model = make_model("llama")
    teacher = another(model)
    stage = stages("coconut", {}, **LATENTS)[3]
    reasoner, samples = thinker_of(model, teacher, stage), samples_of(stage)[:1]
    found = stage.loss(reasoner, collate(samples, PAD))["distillation"][0]
    (sample,) = samples
    vectors = [vector.detach() for vector in plain_inputs(model, sample)]
    known = teacher.base_model(inputs_embeds=torch.stack(vectors)[None], use_cache=False).last_hidden_state[0]
    hidden = plain_hidden(model, sample)
    other = sum(
        plain_divergence(
            model.get_output_embeddings().weight @ hidden[place - 1],
            teacher.get_output_embeddings().weight @ known[place - 1],
            1.0,
        )
        for place, label in enumerate(sample.labels)
        if label != IGNORED
    )
    assert found.item() != pytest.approx(other.item(), rel=1e-2)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "icot_kd"])
def test_every_other_method_has_all_its_stages_taught(kind):
    plain, taught = method(kind), method(kind, {"teacher": "llama+cot", "temperature": 2.0})
    assert list(plain.stages().values()) == [plain.resolved_stages()[number] for number in plain.stages()]
    for number, stage in plain.stages().items():
        healed = taught.resolved_stages()[number]
        assert (healed.needs_teacher, healed.reads_minds) == (True, False)
        # Who teaches is not a setting of the stage.
        distil = {"weight": 1.0, "temperature": 2.0, "task_weight": 0.0}
        assert healed.canonical() == {**stage.canonical(), "distil": distil}
        again = METHODS[kind].stage_type.model_validate(json.loads(json.dumps(healed.canonical())))
        assert (again, type(again)) == (healed, type(healed))
        assert METHODS[kind].stage_type.model_validate(stage.canonical()) == stage
        for name in ("decoding", "lay_out"):
            arguments = (MARKERS,) if name == "decoding" else (draw_rows(ROWS[0])[0], MARKERS)
            assert getattr(healed, name)(*arguments) == getattr(stage, name)(*arguments)
        assert (healed.is_scheduled, healed.draws, healed.answers) == (
            stage.is_scheduled,
            stage.draws,
            stage.answers,
        )


def test_a_stage_that_moves_keeps_its_teacher():
    stage = stages("icot_si", {"task_weight": 1.0})[0]
    now = stage.at_step(3, 8)
    assert now.first == 2
    assert now.loss_weights() == {"cross_entropy": 1.0, "distillation": 1.0}
    assert now.needs_teacher


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("icot_kd", {"distil": {}}, "distil: icot_kd has a way of its own to learn from a teacher"),
        (
            "coconut",
            {"distil": {}, "auxiliary_decoder": {}},
            "distil.task_weight: at 0 the method's own loss",
        ),
        (
            "codi",
            {"distil": {}, "auxiliary_decoder": {}},
            "distil.task_weight: at 0 the method's own loss",
        ),
    ],
)
def test_wrong_settings_are_refused(kind, settings, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        method(kind, **settings)
