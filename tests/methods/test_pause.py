"""Samples written out by hand. Question 1 2, steps [11, 12] [21], answer 91 92."""

import pytest
from references import MARKERS as IDS
from references import PAD, assert_supervised_loss, draw_rows, gradients

from copra.data.batch import collate
from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.methods import Pause
from copra.methods.reasoning_model import ReasoningModel
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21]], answer=[91, 92])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])
ROWS = ((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))
_ = -100


def pause(**settings):
    return Pause(kind="pause", training={"steps": 1}, **settings)


def test_copies_of_one_token_stand_between_question_and_answer():
    stages = pause(pauses=3).stages()
    assert list(stages) == [0]
    sample = stages[0].lay_out(ROW, MARKERS)
    assert sample.tokens == [1, 2, 8, 8, 8, 91, 92]
    assert sample.labels == [_, _, _, _, _, 91, 92]
    assert (sample.id, sample.first_latent, sample.n_latents) == ("row", 2, 3)


def test_a_row_without_steps_has_as_many():
    sample = pause().stages()[0].lay_out(BARE, MARKERS)
    assert sample.tokens == [4, 8, 8, 8, 8, 8, 8, 94]
    assert sample.labels == [_, _, _, _, _, _, _, 94]


def test_a_checkpoint_answers_after_its_pauses_in_one_pass():
    stage = pause(pauses=3).stages()[0]
    decoding = stage.decoding(MARKERS)
    assert decoding == GenerationSpec((), 3, "embedding", 8, ())
    assert (decoding.has_recurrent_latents, decoding.jacobi_iterations, decoding.extra_modules) == (
        False,
        0,
        (),
    )
    assert reread(decoding) == decoding
    assert (stage.extra_modules(), stage.frozen(), stage.needs_teacher, stage.draws) == ({}, (), False, False)


def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model):
    stage = pause(pauses=3).stages()[0]
    samples = [stage.lay_out(row, IDS) for row in draw_rows(*ROWS)]
    assert_supervised_loss(stage, any_model, samples, "embedding")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_token_has_an_embedding_that_learns(make_model, kind):
    """Untied, so that the row's gradient comes from what is read alone."""
    model = make_model(kind, tied=False)
    stage = pause(pauses=3).stages()[0]
    batch = collate([stage.lay_out(row, IDS) for row in draw_rows(*ROWS)], PAD)
    gradients(model, stage.loss(ReasoningModel(model), batch)["cross_entropy"][0])
    rows = model.get_input_embeddings().weight.grad
    assert rows[IDS.latent].norm() > 0.01 * rows.norm()
    # There are no markers around it.
    assert not rows[[IDS.start, IDS.end]].any()
