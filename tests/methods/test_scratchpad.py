"""Samples written out by hand. Question 1 2, steps [11, 12] [21] [31, 32], answer 91 92."""

import pytest
from references import MARKERS as IDS
from references import assert_supervised_loss, draw_rows

from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.methods import Cot, Scratchpad
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])
_ = -100


def scratchpad(**settings):
    return Scratchpad(kind="scratchpad", training={"steps": 1}, **settings)


# J = 3, one step more a stage. The tokens are the whole chain in every stage: only the labels move.
WORKED = {
    0: [_, _, _, _, _, _, _, 91, 92],
    1: [_, _, _, _, _, 31, 32, 91, 92],
    2: [_, _, _, _, 21, 31, 32, 91, 92],
    3: [_, _, 11, 12, 21, 31, 32, 91, 92],
}


@pytest.mark.parametrize("stage", WORKED)
def test_each_stage_supervises_one_step_more_from_the_end(stage):
    sample = scratchpad().stages()[stage].lay_out(ROW, MARKERS)
    assert sample.tokens == [1, 2, 11, 12, 21, 31, 32, 91, 92]
    assert sample.labels == WORKED[stage]
    assert (sample.id, sample.first_latent, sample.n_latents) == ("row", 2, 0)


def test_a_row_with_fewer_steps_than_stages_is_whole_earlier():
    samples = [stage.lay_out(SHORT, MARKERS) for stage in scratchpad().stages().values()]
    assert {tuple(sample.tokens) for sample in samples} == {(3, 41, 93)}
    assert [sample.labels for sample in samples] == [[_, _, 93], [_, 41, 93], [_, 41, 93], [_, 41, 93]]


def test_a_row_without_steps_is_the_same_in_every_stage():
    samples = [stage.lay_out(BARE, MARKERS) for stage in scratchpad().stages().values()]
    assert {(*sample.tokens, *sample.labels) for sample in samples} == {(4, 94, _, 94)}


def test_more_steps_a_stage():
    """J = 2, two steps more a stage; the last stage asks for all of them, however many there are."""
    stages = scratchpad(max_stage=2, steps_per_stage=2).stages()
    labels = [stage.lay_out(ROW, MARKERS).labels for stage in stages.values()]
    assert labels == [WORKED[0], WORKED[2], WORKED[3]]


def test_the_last_stage_gives_the_question_alone_even_to_longer_chains():
    labels = [stage.lay_out(ROW, MARKERS).labels for stage in scratchpad(max_stage=1).stages().values()]
    assert labels == [WORKED[0], WORKED[3]]
    cot = Cot(kind="cot", training={"steps": 1}).stages()[0]
    assert scratchpad(max_stage=1).stages()[1].lay_out(ROW, MARKERS) == cot.lay_out(ROW, MARKERS)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"max_stage": 1}, [0, 1]),
        ({"first_stage": 2}, [2, 3]),
        ({"first_stage": 9}, [3]),
        ({"curriculum": False}, [3]),
        ({"curriculum": False, "first_stage": 1, "max_stage": 2}, [2]),
    ],
)
def test_there_are_j_plus_1_stages_or_fewer_by_request(settings, numbers):
    assert list(scratchpad(**settings).stages()) == numbers
    last = scratchpad(**settings).stages()[numbers[-1]]
    assert last.lay_out(ROW, MARKERS).labels[:3] == ([_, _, 11])


def test_answers_are_written_from_the_question():
    for stage in scratchpad().stages().values():
        decoding = stage.decoding(MARKERS)
        assert decoding == GenerationSpec((), 0, "hidden", 8, ())
        assert not decoding.has_recurrent_latents
        assert decoding.extra_modules == ()
        assert reread(decoding) == decoding
        assert (stage.extra_modules(), stage.frozen(), stage.needs_teacher, stage.draws) == (
            {},
            (),
            False,
            False,
        )


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, number):
    stage = scratchpad().stages()[number]
    rows = draw_rows((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))
    assert_supervised_loss(stage, any_model, [stage.lay_out(row, IDS) for row in rows])
