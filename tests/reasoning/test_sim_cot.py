"""Texts written out by hand, and the loss of telling them against a plain reference.

Question 1 2, steps [11, 12] [21] [31, 32], answer 91 92.
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
    body_of,
    draw_rows,
    gradients,
    plain_cross_entropy,
    plain_inputs,
    projected,
    surprise,
    through_blocks,
)

from copra.models.parts import StepDecoder, make_parts
from copra.reasoning import Coconut, Codi
from copra.reasoning.forward import collate
from copra.reasoning.layout import IGNORED, Decoding, Markers, TokenRow
from copra.reasoning.sim_cot import Explaining, told
from copra.reasoning.thinker import Thinker

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])


def coconut(explaining=None, **settings):
    explaining = {} if explaining is None else explaining
    return Coconut(kind="coconut", training={"steps": 1}, explaining=explaining, **settings)


@pytest.mark.parametrize(
    ("groups", "texts"),
    [
        (0, ()),
        (1, ((11, 12, 21, 31, 32),)),
        (2, ((11, 12), (21, 31, 32))),
        (3, ((11, 12), (21,), (31, 32))),
        (5, ((11, 12), (21,), (31, 32))),
    ],
)
def test_each_group_tells_a_step_and_the_last_one_what_remains(groups, texts):
    assert told(ROW.steps, groups) == texts
    assert told((), groups) == ()


# c = 2 latents a step, K = 2: stages 0, 1, 2 and the last one, 3. Tokens and what the latents must tell.
WORKED = {
    0: ([1, 2, 7, 9, 11, 12, 21, 31, 32, 91, 92], ()),
    1: ([1, 2, 7, 8, 8, 9, 21, 31, 32, 91, 92], ((11, 12),)),
    2: ([1, 2, 7, 8, 8, 8, 8, 9, 31, 32, 91, 92], ((11, 12), (21,))),
    3: ([1, 2, 7, 8, 8, 8, 8, 9, 91, 92], ((11, 12), (21, 31, 32))),
}


@pytest.mark.parametrize("number", WORKED)
def test_coconuts_latents_tell_the_steps_that_they_replace(number):
    sample = coconut(latents_per_step=2, max_latent_stage=2).stages()[number].lay_out(ROW, MARKERS)
    assert (sample.tokens, sample.explained) == WORKED[number]
    assert sample.latents_a_text == 2
    plain = coconut(latents_per_step=2, max_latent_stage=2).model_copy(update={"explaining": None})
    without = plain.stages()[number].lay_out(ROW, MARKERS)
    assert (without.tokens, without.labels) == (sample.tokens, sample.labels)
    assert (without.explained, without.latents_a_text) == ((), 1)


@pytest.mark.parametrize("padded", [True, False])
def test_latents_beyond_the_steps_of_a_row_tell_nothing(padded):
    stages = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=padded).stages()
    short = [stage.lay_out(SHORT, MARKERS) for stage in stages.values()]
    assert [sample.explained for sample in short] == [(), ((41,),), ((41,),), ((41,),)]
    assert [sample.n_latents for sample in short] == [0, 2, 4, 4 if padded else 2]
    assert {stage.lay_out(BARE, MARKERS).explained for stage in stages.values()} == {()}


def test_explaining_changes_no_answer():
    for number, stage in coconut().stages().items():
        decoding = Coconut(kind="coconut", training={"steps": 1}).stages()[number].decoding(MARKERS)
        assert stage.decoding(MARKERS) == decoding
        assert decoding.parts == ()
        assert Decoding.from_json(json.loads(json.dumps(decoding.to_json()))) == decoding


def test_parts_weights_and_counts():
    stage = coconut({"layers": 2, "weight": 0.5}, latents_per_step=2, max_latent_stage=2).stages()[3]
    assert stage.parts() == {"step_decoder": {"layers": 2}}
    assert stage.weigh() == {"cross_entropy": 1.0, "explanation": 0.5}
    samples = [stage.lay_out(row, MARKERS) for row in (ROW, SHORT, BARE)]
    assert stage.counts(samples) == {"cross_entropy": 2 + 1 + 1, "explanation": 2 + 3 + 1}
    assert coconut({"decoder": "shared"}).stages()[1].parts() == {}
    both = coconut(latent_input="projected").stages()[1]
    assert both.parts() == {"projection": {}, "step_decoder": {"layers": 1}}


@pytest.mark.parametrize("explaining", [{}, {"decoder": "shared", "weight": 0.1}, {"layers": 3}])
def test_stages_survive_their_json(explaining):
    for stage in coconut(explaining, stage_mixing=True).stages().values():
        assert type(stage).model_validate(json.loads(json.dumps(stage.canonical()))) == stage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"explaining": {"layers": 0}}, "layers"),
        ({"explaining": {"weight": 0}}, "weight"),
        ({"explaining": {"decoder": "big"}}, "decoder"),
        ({"explaining": {"lambda": 1}}, "lambda"),
        ({"thought": "none"}, "explaining: only latents"),
        ({"thought": "embedding"}, "explaining: only latents"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        coconut(**settings)


def test_a_small_decoder_has_neither_embedding_nor_head(any_model):
    decoder = StepDecoder(any_model, layers=2)
    heads = {any_model.config.vocab_size}
    assert not any(heads & set(parameter.shape) for parameter in decoder.parameters())
    assert len(decoder.body.h if hasattr(decoder.body, "h") else decoder.body.layers) == 2


# The norms of a new decoder of Llama's kind are taken in float32.
TOLERANCE = 2e-5
# Rows with more steps than groups, as many, none and fewer, in one batch.
ROWS = ((5, (3, 2, 4)), (2, (2, 1)), (7, ()), (3, (6,)))
WAYS = [
    ({}, {"latents_per_step": 2, "max_latent_stage": 2}, 3),
    ({"layers": 2, "weight": 0.3}, {"latent_input": "projected"}, 2),
    ({"decoder": "shared"}, {"max_latent_stage": 2}, 3),
    ({"decoder": "shared", "weight": 2.0}, {"latents_per_step": 2, "latent_input": "projected"}, 1),
]


def thinker_of(model, stage):
    torch.manual_seed(5)
    return Thinker(model, make_parts(model, stage.parts()))


def feed_of(thinker):
    return projected(thinker.parts["projection"]) if "projection" in thinker.parts else lambda hidden: hidden


def plain_explanation(thinker, sample, inputs, c):
    """Sum of -log p(token) over the texts: a decoder reads the c latents of a text as they were fed, then the
    text, from position 0."""
    loss = torch.zeros((), dtype=torch.float64)
    embedding = thinker.model.get_input_embeddings().weight
    small = thinker.parts["step_decoder"].body if "step_decoder" in thinker.parts else None
    for k, text in enumerate(sample.explained):
        first = sample.first_latent + k * c
        read = [*inputs[first : first + c], *(embedding[token] for token in text)]
        states = through_blocks(thinker.model.base_model if small is None else small, read)[-1]
        for i, token in enumerate(text):
            loss = loss + surprise(thinker.model, states[c + i - 1], token)
    return loss


@pytest.mark.parametrize(("explaining", "settings", "number"), WAYS)
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, explaining, settings, number):
    stage = coconut(explaining, **settings).stages()[number]
    thinker = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    c = settings.get("latents_per_step", 1)
    answers, explanations = [], []
    for sample in samples:
        inputs = plain_inputs(any_model, sample, "hidden", feed_of(thinker))
        answers.append(plain_cross_entropy(any_model, body_of(any_model, inputs), sample.labels))
        explanations.append(plain_explanation(thinker, sample, inputs, c))
    supervised = sum(label != IGNORED for sample in samples for label in sample.labels)
    # By hand: the tokens of the first `number` steps (in the last stage of all).
    told_tokens = {3: 9 + 3 + 0 + 6, 2: 5 + 3 + 0 + 6, 1: 3 + 2 + 0 + 6}[number]
    expected = {
        "cross_entropy": (1.0, sum(answers), supervised),
        "explanation": (explaining.get("weight", 1.0), sum(explanations), told_tokens),
    }
    reached = assert_same_loss(stage, thinker, samples, expected, TOLERANCE)
    assert set(reached) == {name for name, _ in thinker.named_parameters()}


@pytest.mark.parametrize("decoder", ["small", "shared"])
def test_the_explanation_reaches_the_model_through_the_latents(any_model, decoder):
    """With the latents cut off from what made them, the gradient is another one."""
    stage = coconut({"decoder": decoder}, max_latent_stage=2).stages()[3]
    thinker = thinker_of(any_model, stage)
    sample = stage.lay_out(draw_rows(*ROWS)[0], IDS)
    batch = collate([sample], PAD)
    ours = gradients(thinker, stage.loss(thinker, batch)["explanation"][0])
    inputs = plain_inputs(any_model, sample)
    whole, cut = (
        gradients(thinker, plain_explanation(thinker, sample, vectors, 1))
        for vectors in (inputs, [vector.detach() for vector in inputs])
    )
    assert_same_gradients(ours, whole, TOLERANCE)
    # Cut off, a small decoder leaves the blocks of the model alone; a shared one is itself the model.
    blocks = {name for name in whole if name.startswith("model.") and ".1." in name}
    assert blocks <= set(whole)
    assert blocks & set(cut) == (set() if decoder == "small" else blocks)
    far = [(whole[name] - cut.get(name, 0)).norm() / whole[name].norm() for name in blocks]
    assert max(far) > 0.1


def test_a_batch_without_steps_explains_nothing(any_model):
    stage = coconut(max_latent_stage=2).stages()[3]
    thinker = thinker_of(any_model, stage)
    samples = [stage.lay_out(draw_rows(*ROWS)[2], IDS)]
    loss, count = stage.loss(thinker, collate(samples, PAD))["explanation"]
    assert (loss.item(), count) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(thinker, loss).values())


def test_codis_latents_tell_the_steps_that_its_teacher_reads(any_model):
    stage = Codi(kind="codi", training={"steps": 1}, latents=2, explaining={"weight": 0.5}).stages()[0]
    thinker = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    total = sum(
        plain_explanation(thinker, sample, plain_inputs(any_model, sample, "hidden", feed_of(thinker)), 1)
        for sample in samples
    )
    loss, count = stage.loss(thinker, collate(samples, PAD))["explanation"]
    assert loss.item() == pytest.approx(total.item(), rel=TOLERANCE)
    assert count == stage.counts(samples)["explanation"] == 5 + 2
    assert_same_gradients(gradients(thinker, loss), gradients(thinker, total), TOLERANCE)


def test_the_defaults_are_a_small_decoder_of_one_layer():
    assert Explaining().canonical() == {"decoder": "small", "layers": 1, "weight": 1.0}
