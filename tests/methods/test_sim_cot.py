"""Texts written out by hand, and the loss of telling them against a plain reference.

Question 1 2, steps [11, 12] [21] [31, 32], answer 91 92.
"""

import json
from types import SimpleNamespace

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

from copra.data.batch import collate
from copra.data.sequences import IGNORED, Markers, TokenRow
from copra.methods import Coconut, Codi
from copra.methods.loss_functions import weighted
from copra.methods.reasoning_model import ReasoningModel
from copra.methods.sim_cot import AuxiliaryDecoder, step_targets
from copra.models.extra_modules import StepDecoder, make_extra_modules
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])


def coconut(auxiliary_decoder=None, **settings):
    auxiliary_decoder = {} if auxiliary_decoder is None else auxiliary_decoder
    return Coconut(kind="coconut", training={"steps": 1}, auxiliary_decoder=auxiliary_decoder, **settings)


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
    assert step_targets(ROW.steps, groups) == texts
    assert step_targets((), groups) == ()
    spare = [91, 92]
    assert step_targets(ROW.steps, groups, spare) == texts + ((91, 92),) * (groups - len(texts))
    assert step_targets((), groups, spare) == ((91, 92),) * groups


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
    assert sample.latents_per_text == 2
    plain = coconut(latents_per_step=2, max_latent_stage=2).model_copy(update={"auxiliary_decoder": None})
    without = plain.stages()[number].lay_out(ROW, MARKERS)
    assert (without.tokens, without.labels) == (sample.tokens, sample.labels)
    assert (without.explained, without.latents_per_text) == ((), 1)


@pytest.mark.parametrize("padded", [True, False])
def test_latents_beyond_the_steps_of_a_row_tell_nothing(padded):
    stages = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=padded).stages()
    short = [stage.lay_out(SHORT, MARKERS) for stage in stages.values()]
    assert [sample.explained for sample in short] == [(), ((41,),), ((41,),), ((41,),)]
    assert [sample.n_latents for sample in short] == [0, 2, 4, 4 if padded else 2]
    assert {stage.lay_out(BARE, MARKERS).explained for stage in stages.values()} == {()}


def test_spare_latents_may_tell_the_answer():
    """As in the authors' code on Coconut: what stands after the latents, which is the answer alone then."""
    stages = coconut({"spare_latents": "answer"}, latents_per_step=2, max_latent_stage=2).stages()
    found = {
        row.id: [stage.lay_out(row, MARKERS).explained for stage in stages.values()] for row in (SHORT, BARE)
    }
    assert found == {
        "short": [(), ((41,),), ((41,), (93,)), ((41,), (93,))],
        "bare": [(), ((94,),), ((94,), (94,)), ((94,), (94,))],
    }
    assert {number: stage.lay_out(ROW, MARKERS).explained for number, stage in stages.items()} == {
        number: texts for number, (_, texts) in WORKED.items()
    }


def test_explaining_changes_no_answer():
    for number, stage in coconut().stages().items():
        decoding = Coconut(kind="coconut", training={"steps": 1}).stages()[number].decoding(MARKERS)
        assert stage.decoding(MARKERS) == decoding
        assert decoding.extra_modules == ()
        assert reread(decoding) == decoding


def test_parts_weights_and_counts():
    stage = coconut({"layers": 2, "weight": 0.5}, latents_per_step=2, max_latent_stage=2).stages()[3]
    assert stage.extra_modules() == {"step_decoder": {"layers": 2}}
    assert stage.loss_weights() == {"cross_entropy": 1.0, "explanation": 0.5}
    samples = [stage.lay_out(row, MARKERS) for row in (ROW, SHORT, BARE)]
    assert stage.normalizers(samples) == {"cross_entropy": 2 + 1 + 1, "explanation": 2 + 3 + 1}
    assert coconut({"decoder": "shared"}).stages()[1].extra_modules() == {}
    both = coconut(latent_input="projected").stages()[1]
    assert both.extra_modules() == {"projection": {}, "step_decoder": {"layers": 1}}
    copied = coconut({"decoder": "pretrained"}).stages()[1]
    assert copied.extra_modules() == {"step_decoder": {"layers": None}}
    assert (copied.copies_pretrained, both.copies_pretrained) == (True, False)


@pytest.mark.parametrize("auxiliary_decoder", [{}, {"decoder": "shared", "weight": 0.1}, {"layers": 3}])
def test_stages_survive_their_json(auxiliary_decoder):
    for stage in coconut(auxiliary_decoder, stage_mixing=True).stages().values():
        assert type(stage).model_validate(json.loads(json.dumps(stage.canonical()))) == stage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"auxiliary_decoder": {"next_latent": True}},
            "auxiliary_decoder.next_latent: Coconut feeds every",
        ),
        ({"thought": "none"}, "auxiliary_decoder: without latents"),
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
    ({"decoder": "pretrained"}, {"latents_per_step": 2, "max_latent_stage": 2}, 3),
]


def thinker_of(model, stage):
    torch.manual_seed(5)
    return ReasoningModel(model, make_extra_modules(model, stage.extra_modules()))


def feed_of(reasoner):
    return (
        projected(reasoner.extra_modules["projection"])
        if "projection" in reasoner.extra_modules
        else lambda hidden: hidden
    )


def plain_explanation(reasoner, sample, inputs, c):
    """Sum of -log p(token) over the texts: a decoder reads the c latents of a text as they were fed, then the
    text, from position 0."""
    loss = torch.zeros((), dtype=torch.float64)
    for k, text in enumerate(sample.explained):
        first = sample.first_latent + k * c
        loss = loss + plain_telling(reasoner, inputs[first : first + c], text)
    return loss


def plain_telling(reasoner, latents, text):
    """The sum of -log p(token) over one text, after the latents that stand for it."""
    decoder = reasoner.extra_module("step_decoder")
    body = reasoner.model.base_model if decoder is None else decoder.body
    # The authors' copy of the model has an LM head of its own; what it reads are the model's embeddings.
    own_head = decoder is not None and decoder.head is not None
    head = SimpleNamespace(get_output_embeddings=lambda: decoder.head) if own_head else reasoner.model
    embedding = reasoner.model.get_input_embeddings().weight
    states = through_blocks(body, [*latents, *(embedding[token] for token in text)])[-1]
    last = len(latents) - 1
    return sum(surprise(head, states[last + i], token) for i, token in enumerate(text))


@pytest.mark.parametrize(("auxiliary_decoder", "settings", "number"), WAYS)
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, auxiliary_decoder, settings, number):
    stage = coconut(auxiliary_decoder, **settings).stages()[number]
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    c = settings.get("latents_per_step", 1)
    answers, explanations = [], []
    for sample in samples:
        inputs = plain_inputs(any_model, sample, "hidden", feed_of(reasoner))
        answers.append(plain_cross_entropy(any_model, body_of(any_model, inputs), sample.labels))
        explanations.append(plain_explanation(reasoner, sample, inputs, c))
    supervised = sum(label != IGNORED for sample in samples for label in sample.labels)
    # By hand: the tokens of the first `number` steps (in the last stage of all).
    told_tokens = {3: 9 + 3 + 0 + 6, 2: 5 + 3 + 0 + 6, 1: 3 + 2 + 0 + 6}[number]
    expected = {
        "cross_entropy": (1.0, sum(answers), supervised),
        "explanation": (auxiliary_decoder.get("weight", 1.0), sum(explanations), told_tokens),
    }
    reached = assert_same_loss(stage, reasoner, samples, expected, TOLERANCE)
    assert set(reached) == {name for name, _ in reasoner.named_parameters()}


@pytest.mark.parametrize("latent_input", ["raw", "scaled"])
def test_pause_tokens_are_explained_by_the_states_before_them(any_model, latent_input):
    """The control reads learned embeddings, and is supervised at the same states as latents are."""
    stage = coconut(
        {"decoder": "shared"}, thought="embedding", latent_input=latent_input, max_latent_stage=2
    ).stages()[3]
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    answers, explanations = [], []
    norm = any_model.get_input_embeddings().weight.detach().norm(dim=1).mean()
    for sample in samples:
        inputs = plain_inputs(any_model, sample, "embedding")
        states = body_of(any_model, inputs)
        answers.append(plain_cross_entropy(any_model, states, sample.labels))
        for k, text in enumerate(sample.explained):
            latent = states[sample.first_latent + k - 1]
            scaled = latent * norm / latent.norm() if latent_input == "scaled" else latent
            explanations.append(plain_telling(reasoner, [scaled], text))
    supervised = sum(label != IGNORED for sample in samples for label in sample.labels)
    expected = {
        "cross_entropy": (1.0, sum(answers), supervised),
        "explanation": (1.0, sum(explanations), 9 + 3 + 0 + 6),
    }
    assert_same_loss(stage, reasoner, samples, expected, TOLERANCE)


@pytest.mark.parametrize("decoder", ["small", "shared"])
def test_the_explanation_reaches_the_model_through_the_latents(any_model, decoder):
    """With the latents cut off from what made them, the gradient is another one."""
    stage = coconut({"decoder": decoder}, max_latent_stage=2).stages()[3]
    reasoner = thinker_of(any_model, stage)
    sample = stage.lay_out(draw_rows(*ROWS)[0], IDS)
    batch = collate([sample], PAD)
    ours = gradients(reasoner, stage.loss(reasoner, batch)["explanation"][0])
    inputs = plain_inputs(any_model, sample)
    whole, cut = (
        gradients(reasoner, plain_explanation(reasoner, sample, vectors, 1))
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
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(draw_rows(*ROWS)[2], IDS)]
    loss, count = stage.loss(reasoner, collate(samples, PAD))["explanation"]
    assert (loss.item(), count) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(reasoner, loss).values())


def test_codis_latents_tell_the_steps_that_its_teacher_reads(any_model):
    stage = Codi(kind="codi", training={"steps": 1}, latents=2, auxiliary_decoder={"weight": 0.5}).stages()[0]
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    total = sum(
        plain_explanation(reasoner, sample, plain_inputs(any_model, sample, "hidden", feed_of(reasoner)), 1)
        for sample in samples
    )
    loss, count = stage.loss(reasoner, collate(samples, PAD))["explanation"]
    assert loss.item() == pytest.approx(total.item(), rel=TOLERANCE)
    assert count == stage.normalizers(samples)["explanation"] == 5 + 2
    assert_same_gradients(gradients(reasoner, loss), gradients(reasoner, total), TOLERANCE)


def as_the_authors_do_on_coconut(reasoner, samples, c):
    """InternLM/SIM-CoT, Coconut/coconut.py, mode v1_aug, `packing` off: thought by thought the sum over the
    tokens of all rows, divided by the number of rows; the mean over thoughts. Each row has all thoughts."""
    inputs = [plain_inputs(reasoner.model, sample, "hidden", feed_of(reasoner)) for sample in samples]
    thoughts = samples[0].n_latents // c
    loss_explain_all = 0.0
    for thought in range(thoughts):
        loss_explain = 0.0
        for sample, vectors in zip(samples, inputs, strict=True):
            first = sample.first_latent + thought * c
            loss_explain = loss_explain + plain_telling(
                reasoner, vectors[first : first + c], sample.explained[thought]
            )
        loss_explain_all = loss_explain_all + loss_explain / len(samples)
    return loss_explain_all / thoughts


def as_the_authors_do_on_codi(reasoner, samples):
    """InternLM/SIM-CoT, CODI/src/model.py: after each of n latents and the next one, the mean over the tokens
    of all rows; the sum over those with any token, divided by their number."""
    explain_loss_total, effective_steps = 0.0, 0
    for k in range(samples[0].n_latents + 1):
        total, tokens = 0.0, 0
        for sample in samples:
            if k < len(sample.explained):
                vectors = plain_inputs(reasoner.model, sample, "hidden", feed_of(reasoner))
                before = sample.first_latent + k
                hidden = body_of(reasoner.model, vectors[:before])[-1]
                total = total + plain_telling(reasoner, [feed_of(reasoner)(hidden)], sample.explained[k])
                tokens += len(sample.explained[k])
        if tokens:
            explain_loss_total, effective_steps = explain_loss_total + total / tokens, effective_steps + 1
    return explain_loss_total / effective_steps


def explanation_of(stage, reasoner, samples):
    """The part of a stage's loss that explains, its weights and counts as in training."""
    terms = stage.loss(reasoner, collate(samples, PAD))
    weights = {
        name: weight for name, weight in stage.loss_weights().items() if name.startswith("explanation")
    }
    return weighted(terms, weights, stage.normalizers(samples))


PUBLISHED = {"decoder": "pretrained"}


@pytest.mark.parametrize("c", [1, 2])
def test_on_coconut_the_loss_is_the_authors(any_model, c):
    way = {**PUBLISHED, "step_loss": "sum", "spare_latents": "answer", "weight": 0.7}
    stage = coconut(way, latents_per_step=c, max_latent_stage=2).stages()[3]
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    ours, theirs = (
        explanation_of(stage, reasoner, samples),
        as_the_authors_do_on_coconut(reasoner, samples, c),
    )
    assert ours.item() == pytest.approx(0.7 * theirs.item(), rel=1e-6)
    assert_same_gradients(gradients(reasoner, ours), gradients(reasoner, 0.7 * theirs), 1e-5)


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:3], ((4, (2, 1, 2, 3, 1)), (2, (1, 2)))])
def test_on_codi_the_loss_is_the_authors(any_model, rows):
    """Three latents and the next one; no row may have a step for the last of them."""
    way = {**PUBLISHED, "step_loss": "mean_per_latent", "next_latent": True, "weight": 0.7}
    stage = Codi(kind="codi", training={"steps": 1}, latents=3, auxiliary_decoder=way).stages()[0]
    assert len([name for name in stage.loss_weights() if name.startswith("explanation_")]) == 4
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*rows)]
    ours, theirs = explanation_of(stage, reasoner, samples), as_the_authors_do_on_codi(reasoner, samples)
    assert ours.item() == pytest.approx(0.7 * theirs.item(), rel=1e-6)
    assert_same_gradients(gradients(reasoner, ours), gradients(reasoner, 0.7 * theirs), 1e-5)


@pytest.mark.parametrize("step_loss", ["mean", "sum", "mean_per_latent"])
def test_micro_batches_add_up(any_model, step_loss):
    """Counts are those of the whole batch."""
    stage = coconut({"step_loss": step_loss}, max_latent_stage=3, stage_mixing=True).stages()[4]
    reasoner = thinker_of(any_model, stage)
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    weights = {name: weight for name, weight in stage.loss_weights().items() if name != "cross_entropy"}
    counts = stage.normalizers(samples)
    extra_modules = [
        stage.loss(reasoner, collate(part, PAD)) for part in (samples[:1], samples[1:3], samples[3:])
    ]
    assert sum(weighted(terms, weights, counts) for terms in extra_modules).item() == pytest.approx(
        explanation_of(stage, reasoner, samples).item(), rel=1e-6
    )


def test_a_step_beyond_the_latents_is_told_by_the_next_one():
    explained = {
        next_latent: Codi(
            kind="codi",
            training={"steps": 1},
            latents=2,
            drop_last_step=False,
            auxiliary_decoder={"next_latent": next_latent},
        )
        .stages()[0]
        .lay_out(ROW, MARKERS)
        .explained
        for next_latent in (False, True)
    }
    assert explained == {False: ((11, 12), (21, 31, 32)), True: ((11, 12), (21,), (31, 32))}


def test_a_copied_decoder_is_the_model_at_first_and_learns_alone(any_model):
    decoder = StepDecoder(any_model, None)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    states = decoder(any_model.get_input_embeddings()(tokens), torch.ones_like(tokens))
    assert torch.equal(decoder.head(states), any_model(tokens).logits)
    own = {id(parameter) for parameter in any_model.parameters()}
    assert not own & {id(parameter) for parameter in decoder.parameters()}
    sizes = [sum(p.numel() for p in module.parameters()) for module in (decoder.body, any_model.base_model)]
    assert sizes[0] == sizes[1] - any_model.get_input_embeddings().weight.numel()


def test_the_defaults_are_a_small_decoder_of_one_layer():
    assert AuxiliaryDecoder().canonical() == {
        "decoder": "small",
        "layers": 1,
        "weight": 1.0,
        "step_loss": "mean",
        "spare_latents": "nothing",
        "next_latent": False,
    }
