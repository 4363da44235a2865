"""Samples written out by hand, and losses against a plain reference.

Question 1 2, steps [11, 12] [21] [31, 32], answer 90 91 92 in which 90 is the mark.
"""

import json

import pytest
import torch
from pydantic import ValidationError
from references import MARKERS as IDS
from references import (
    PAD,
    assert_same_gradients,
    assert_same_loss,
    draw_rows,
    gradients,
    plain_cross_entropy,
    plain_inputs,
    projected,
    through_blocks,
)

from copra.data.batch import collate
from copra.data.sequences import IGNORED, GenerationSpec, Markers, TokenRow
from copra.methods import Codi
from copra.methods.reasoning_model import ReasoningModel
from copra.models.extra_modules import make_extra_modules
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[90, 91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[90, 93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[90, 94])
_ = -100


def codi(**settings):
    return Codi(kind="codi", training={"steps": 1}, **settings)


# n = 3. The student's tokens and labels, where it is read; the teacher's, whose last step is left out.
WORKED = [
    (
        ROW,
        ([1, 2, 7, 8, 8, 8, 9, 90, 91, 92], [_, _, _, _, _, _, _, 90, 91, 92], (7,)),
        ([1, 2, 11, 12, 21, 90, 91, 92], [_, _, 11, 12, 21, 90, 91, 92], (5,)),
    ),
    (
        SHORT,
        ([3, 7, 8, 8, 8, 9, 90, 93], [_, _, _, _, _, _, 90, 93], (6,)),
        ([3, 90, 93], [_, 90, 93], (1,)),
    ),
    (
        BARE,
        ([4, 7, 8, 8, 8, 9, 90, 94], [_, _, _, _, _, _, 90, 94], (6,)),
        ([4, 90, 94], [_, 90, 94], (1,)),
    ),
]


def parts_of(sample):
    return sample.tokens, sample.labels, sample.read


@pytest.mark.parametrize(("row", "student", "teacher"), WORKED)
def test_student_and_teacher_are_read_before_the_answer_itself(row, student, teacher):
    sample = codi(latents=3).stages()[0].lay_out(row, MARKERS)
    assert parts_of(sample) == student
    assert (sample.id, sample.first_latent, sample.n_latents) == (row.id, len(row.question) + 1, 3)
    assert parts_of(sample.teacher) == teacher
    assert (sample.teacher.id, sample.teacher.n_latents, sample.explained) == (row.id, 0, ())


def test_the_last_step_may_stay():
    sample = codi(latents=1, drop_last_step=False).stages()[0].lay_out(ROW, MARKERS)
    assert parts_of(sample) == ([1, 2, 7, 8, 9, 90, 91, 92], [_, _, _, _, _, 90, 91, 92], (5,))
    tokens = [1, 2, 11, 12, 21, 31, 32, 90, 91, 92]
    assert parts_of(sample.teacher) == (tokens, [_, _, *tokens[2:]], (7,))


# The mark of two tokens, 90 91, and of none, where what stands before the answer is read.
@pytest.mark.parametrize(("mark", "student", "teacher"), [(2, 6, 6), (0, 4, 4)])
def test_a_mark_of_more_tokens_or_none(mark, student, teacher):
    row = TokenRow("row", question=[1, 2], steps=[[11, 12], [21]], answer=[90, 91, 92], mark=mark)
    sample = codi(latents=1).stages()[0].lay_out(row, MARKERS)
    assert sample.tokens == [1, 2, 7, 8, 9, 90, 91, 92]
    assert sample.teacher.tokens == [1, 2, 11, 12, 90, 91, 92]
    assert (sample.read, sample.teacher.read) == ((student,), (teacher - 1,))


def test_a_step_is_explained_by_each_latent_and_what_remains_by_the_last():
    """With the last step in the teacher's chain: three steps for two latents, and for four."""
    texts = {
        n: codi(latents=n, drop_last_step=False, auxiliary_decoder={})
        .stages()[0]
        .lay_out(ROW, MARKERS)
        .explained
        for n in (1, 2, 4)
    }
    assert texts == {
        1: ((11, 12, 21, 31, 32),),
        2: ((11, 12), (21, 31, 32)),
        4: ((11, 12), (21,), (31, 32)),
    }
    # What the teacher does not read is not explained either.
    stage = codi(latents=2, auxiliary_decoder={}).stages()[0]
    samples = [stage.lay_out(row, MARKERS) for row in (ROW, SHORT, BARE)]
    assert [sample.explained for sample in samples] == [((11, 12), (21,)), (), ()]
    assert {sample.latents_per_text for sample in samples} == {1}


def test_decoding():
    decoding = codi(latents=3).stages()[0].decoding(MARKERS)
    assert decoding == GenerationSpec((7,), 3, "hidden", 8, (9,), latent_input="projected")
    assert (decoding.has_recurrent_latents, decoding.jacobi_iterations, decoding.extra_modules) == (
        True,
        0,
        ("projection",),
    )
    parallel = codi(latents=3, iterations=2, latent_input="raw").stages()[0].decoding(MARKERS)
    assert parallel == GenerationSpec((7,), 3, "hidden", 8, (9,), iterations=2)
    assert (parallel.has_recurrent_latents, parallel.jacobi_iterations, parallel.extra_modules) == (
        True,
        2,
        (),
    )
    # Three iterations over three latents are the chain; with none the latents are pause tokens.
    assert [
        codi(latents=3, iterations=t).stages()[0].decoding(MARKERS).jacobi_iterations for t in (3, 5)
    ] == [0, 0]
    pause = codi(latents=3, iterations=0).stages()[0].decoding(MARKERS)
    assert pause == GenerationSpec((7,), 3, "embedding", 8, (9,))
    assert (pause.has_recurrent_latents, pause.jacobi_iterations, pause.extra_modules) == (False, 0, ())
    for each in (decoding, parallel, pause):
        assert reread(each) == each


def test_parts_and_weights():
    stage = codi(distillation=20).stages()[0]
    assert list(codi().stages()) == [0]
    assert stage.extra_modules() == {"projection": {}}
    assert stage.loss_weights() == {
        "cross_entropy": 1.0,
        "teacher_cross_entropy": 1.0,
        "self_distillation": 20.0,
    }
    assert (stage.frozen(), stage.needs_teacher, stage.draws, stage.dropout) == ((), False, False, True)
    assert codi(latent_input="raw").stages()[0].extra_modules() == {}
    assert codi(iterations=0).stages()[0].extra_modules() == {}
    stage = codi(auxiliary_decoder={"layers": 2, "weight": 0.5}).stages()[0]
    assert stage.extra_modules() == {"projection": {}, "step_decoder": {"layers": 2}}
    assert stage.loss_weights()["explanation"] == 0.5
    assert codi(auxiliary_decoder={"decoder": "shared"}).stages()[0].extra_modules() == {"projection": {}}


@pytest.mark.parametrize(
    "settings", [{}, {"iterations": 2}, {"iterations": 0}, {"auxiliary_decoder": {"layers": 2}}]
)
def test_stages_survive_their_json(settings):
    stage = codi(drop_last_step=False, distillation=2.5, **settings).stages()[0]
    assert type(stage).model_validate(json.loads(json.dumps(stage.canonical()))) == stage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auxiliary_decoder": {}, "iterations": 0}, "auxiliary_decoder: pause tokens"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        codi(**settings)


# Chains of which the last step is not read: 5, 0, 0 and 1 tokens.
ROWS = ((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))


def thinker_of(model, stage):
    torch.manual_seed(5)
    return ReasoningModel(model, make_extra_modules(model, stage.extra_modules()))


def samples_of(stage, mark=1):
    return [stage.lay_out(row, IDS) for row in draw_rows(*ROWS, mark=mark)]


def way_of(reasoner, stage):
    """What a latent reads, how it enters, and the iterations, for `plain_inputs`."""
    feed = (
        projected(reasoner.extra_modules["projection"])
        if "projection" in reasoner.extra_modules
        else lambda hidden: hidden
    )
    return stage.thought, feed, stage.iterations


def smooth_l1(error):
    return torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5).mean()


def plain_terms(reasoner, stage, samples, *, mark=1, detach=True, gamma=1.0):
    """The terms of CODI's loss. Answers have three tokens, `mark` of them the mark."""
    model, before = reasoner.model, 3 - mark + 1
    sums = {"cross_entropy": 0.0, "teacher_cross_entropy": 0.0}
    read = {"student": [], "teacher": []}
    for sample in samples:
        student = through_blocks(model.base_model, plain_inputs(model, sample, *way_of(reasoner, stage)))
        teacher = through_blocks(model.base_model, plain_inputs(model, sample.teacher, "embedding"))
        sums["cross_entropy"] += plain_cross_entropy(model, student[-1], sample.labels)
        sums["teacher_cross_entropy"] += plain_cross_entropy(model, teacher[-1], sample.teacher.labels)
        read["student"].append([state[-before] for state in student])
        read["teacher"].append([state[-before] for state in teacher])
    layers = []
    for student, teacher in zip(
        zip(*read["student"], strict=True), zip(*read["teacher"], strict=True), strict=True
    ):
        target = torch.stack(teacher).detach() if detach else torch.stack(teacher)
        deviation = ((target - target.mean()).square().sum() / (target.numel() - 1)).sqrt()
        layers.append(smooth_l1(torch.stack(student) - target) / deviation)
    assert len(layers) == 3 + 1
    labels = [label for sample in samples for label in sample.teacher.labels]
    return {
        "cross_entropy": (1.0, sums["cross_entropy"], 3 * len(samples)),
        "teacher_cross_entropy": (
            1.0,
            sums["teacher_cross_entropy"],
            sum(label != IGNORED for label in labels),
        ),
        "self_distillation": (gamma, sum(layers) / 4 * len(samples), len(samples)),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"latent_input": "raw", "distillation": 2.0},
        {"iterations": 1},
        {"iterations": 2, "latent_input": "raw"},
        {"iterations": 3},
        {"iterations": 0},
    ],
)
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, settings):
    stage = codi(latents=3, **settings).stages()[0]
    reasoner, samples = thinker_of(any_model, stage), samples_of(stage)
    expected = plain_terms(reasoner, stage, samples, gamma=settings.get("distillation", 1.0))
    reached = assert_same_loss(stage, reasoner, samples, expected)
    assert set(reached) == {name for name, _ in reasoner.named_parameters()}


def test_the_loss_with_a_longer_mark_and_the_last_step(any_model):
    stage = codi(latents=2, drop_last_step=False).stages()[0]
    reasoner, samples = thinker_of(any_model, stage), samples_of(stage, mark=2)
    assert_same_loss(stage, reasoner, samples, plain_terms(reasoner, stage, samples, mark=2))


def test_the_distillation_draws_the_student_alone(any_model):
    """By itself: the teacher's states are a target. Were they not, the gradient would be another one."""
    stage = codi(latents=3).stages()[0]
    reasoner, samples = thinker_of(any_model, stage), samples_of(stage)
    ours = gradients(reasoner, stage.loss(reasoner, collate(samples, PAD))["self_distillation"][0])
    target, attached = (
        gradients(reasoner, plain_terms(reasoner, stage, samples, detach=detach)["self_distillation"][1])
        for detach in (True, False)
    )
    assert_same_gradients(ours, target, 1e-6)
    with pytest.raises(AssertionError):
        assert_same_gradients(ours, attached, 0.1)


def test_the_teachers_cross_entropy_teaches_the_same_weights(any_model):
    stage = codi(latents=3).stages()[0]
    reasoner, samples = thinker_of(any_model, stage), samples_of(stage)
    ours = gradients(reasoner, stage.loss(reasoner, collate(samples, PAD))["teacher_cross_entropy"][0])
    assert {name for name, gradient in ours.items() if gradient.any()} == {
        f"model.{name}" for name, _ in any_model.named_parameters()
    }
    expected = gradients(reasoner, plain_terms(reasoner, stage, samples)["teacher_cross_entropy"][1])
    assert_same_gradients(ours, expected, 1e-6)


def test_explanations_are_a_term_of_their_own(any_model):
    """What the term is: see test_sim_cot.py. The others do not change."""
    plain, explained = (
        codi(latents=3).stages()[0],
        codi(latents=3, auxiliary_decoder={"weight": 0.5}).stages()[0],
    )
    reasoner = thinker_of(any_model, explained)
    ours = explained.loss(reasoner, collate(samples_of(explained), PAD))
    for name, (value, count) in plain.loss(reasoner, collate(samples_of(plain), PAD)).items():
        assert torch.equal(ours[name][0], value)
        assert int(ours[name][1]) == int(count)
    # 3 + 2, 0, 0 and 1 tokens of steps that the teacher reads.
    assert explained.normalizers(samples_of(explained))["explanation"] == ours["explanation"][1] == 6
    assert ours["explanation"][0] > 1


def test_as_many_iterations_as_latents_run_one_latent_after_another(any_model):
    """Which is the same and costs less: after the prompt two latents alone, the third with what follows."""
    widths: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for iterations in (None, 3, 7):
        widths.clear()
        stage = codi(latents=3, iterations=iterations).stages()[0]
        stage.loss(thinker_of(any_model, stage), collate(samples_of(stage)[:1], PAD))
        # Question 5 and a marker; a marker and the answer's 3; the teacher's 5 + 3 + 2 + 3.
        assert widths == [6, 1, 1, 1 + 4, 13]
