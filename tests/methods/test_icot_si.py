"""Samples written out by hand. Question 1 2, steps [11, 12] [21] [31, 32], answer 91 92."""

import math
from collections import Counter
from random import Random

import pytest
from references import MARKERS as IDS
from references import assert_supervised_loss, draw_rows

from copra.data.sequences import GenerationSpec, Markers, TokenRow
from copra.methods import Cot, IcotSi, NoCot
from helpers.manifests import reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])
TRAINING = {"steps": 1}
_ = -100


def icot_si(**settings):
    return IcotSi(kind="icot_si", training=TRAINING, **{"smoothing": None, **settings})


def removed(stage, total):
    """The tokens that are out at each optimizer step of a stage."""
    found = [stage.at_step(step, total) for step in range(1, total + 1)]
    assert all(now.first == now.last for now in found)
    return [now.first for now in found]


# 4 tokens per stage, all beyond 10: tokens 0 to 3, 4 to 7, 8 and 9, and then everything.
@pytest.mark.parametrize(
    ("stage", "total", "tokens"),
    [
        (0, 4, [0, 1, 2, 3]),
        (0, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (0, 10, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        (1, 8, [4, 4, 5, 5, 6, 6, 7, 7]),
        (1, 9, [4, 4, 4, 5, 5, 6, 6, 7, 7]),
        (2, 5, [8, 8, 8, 9, 9]),
        (2, 6, [8, 8, 8, 9, 9, 9]),
        (0, 1, [0]),
    ],
)
def test_one_token_more_goes_after_each_equal_part_of_a_stage(stage, total, tokens):
    assert removed(icot_si(tokens_per_stage=4, remove_all_beyond=10).stages()[stage], total) == tokens


@pytest.mark.parametrize(
    ("settings", "chunks"),
    [
        ({"tokens_per_stage": 4, "remove_all_beyond": 10}, [(0, 3), (4, 7), (8, 9), (0, None)]),
        ({"tokens_per_stage": 4, "remove_all_beyond": 8}, [(0, 3), (4, 7), (0, None)]),
        ({"tokens_per_stage": 4, "remove_all_beyond": 3}, [(0, 2), (0, None)]),
        ({"tokens_per_stage": 1, "remove_all_beyond": 2}, [(0, 0), (1, 1), (0, None)]),
        ({}, [(0, 7), (8, 15), (16, 23), (24, 31), (32, 38), (0, None)]),
    ],
)
def test_stages_are_chunks_of_the_removal_and_a_last_one_without_chain(settings, chunks):
    stages = icot_si(**settings).stages()
    assert list(stages) == list(range(len(chunks)))
    assert [(stage.first, stage.last) for stage in stages.values()] == chunks


# What is left of ROW's chain of five tokens when so many are out.
LEFT = {0: [11, 12, 21, 31, 32], 1: [12, 21, 31, 32], 3: [31, 32], 4: [32], 5: [], 9: []}
RIGHT = {0: [11, 12, 21, 31, 32], 1: [11, 12, 21, 31], 3: [11, 12], 4: [11], 5: [], 9: []}


@pytest.mark.parametrize("gone", LEFT)
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_go_from_one_end_and_the_rest_moves_up(side, gone):
    stage = icot_si(tokens_per_stage=1, remove_all_beyond=12, side=side).stages()[gone]
    sample = stage.lay_out(ROW, MARKERS, Random(0))
    kept = {"left": LEFT, "right": RIGHT}[side][gone]
    assert sample.tokens == [1, 2, *kept, 91, 92]
    assert sample.labels == [_, _, *kept, 91, 92]
    assert (sample.id, sample.first_latent, sample.n_latents) == ("row", 2, 0)


def test_a_row_with_a_short_chain_or_none_has_only_its_answer_left():
    stages = icot_si(tokens_per_stage=1, remove_all_beyond=3).stages()
    short, bare = (
        [stage.lay_out(row, MARKERS, Random(0)) for stage in stages.values()] for row in (SHORT, BARE)
    )
    assert [sample.tokens for sample in short] == [[3, 41, 93], [3, 93], [3, 93], [3, 93]]
    assert [sample.labels for sample in short] == [[_, 41, 93], [_, 93], [_, 93], [_, 93]]
    assert {(*sample.tokens, *sample.labels) for sample in bare} == {(4, 94, _, 94)}


@pytest.mark.parametrize("smoothing", [None, 0.01])
@pytest.mark.parametrize("side", ["left", "right"])
def test_in_the_last_stage_everything_is_out_all_the_time(side, smoothing):
    stage = icot_si(side=side, smoothing=smoothing).stages()[5]
    assert all(stage.at_step(step, 7) == stage for step in range(8))
    no_cot = NoCot(kind="no_cot", training=TRAINING).stages()[0]
    for row in (ROW, SHORT, BARE):
        for draw in (None, *map(Random, range(5))):
            assert stage.lay_out(row, MARKERS, draw) == no_cot.lay_out(row, MARKERS)


def test_a_stage_starts_at_its_first_number_and_is_validated_at_its_last():
    stage = icot_si(tokens_per_stage=4, remove_all_beyond=8).stages()[0]
    assert stage.lay_out(ROW, MARKERS, Random(0)).tokens == [1, 2, 11, 12, 21, 31, 32, 91, 92]
    assert stage.lay_out(ROW, MARKERS).tokens == [1, 2, 31, 32, 91, 92]
    # Step by step: 0, 1, 2 and 3 tokens out.
    rows = [stage.at_step(step, 4).lay_out(ROW, MARKERS, Random(0)).tokens[2:-2] for step in (1, 2, 3, 4)]
    assert rows == [[11, 12, 21, 31, 32], [12, 21, 31, 32], [21, 31, 32], [31, 32]]


LONG = TokenRow("long", question=[1], steps=[list(range(100, 200))], answer=[91])


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_smoothing_takes_more_tokens_geometrically(rate):
    stage = icot_si(tokens_per_stage=4, remove_all_beyond=8, smoothing=rate).stages()[1].at_step(3, 4)
    draw, n = Random(1), 40_000
    counts = Counter(100 - (len(stage.lay_out(LONG, MARKERS, draw).tokens) - 2) for _ in range(n))
    assert min(counts) == 6
    for more in range(8):
        share = (1 - math.exp(-rate)) * math.exp(-rate * more)
        # Four standard deviations.
        assert counts[6 + more] / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def test_smoothing_takes_from_the_right_as_well():
    stage = icot_si(side="right", smoothing=0.5).stages()[0].at_step(1, 8)
    kept = [stage.lay_out(LONG, MARKERS, Random(i)).tokens[1:-1] for i in range(50)]
    assert all(tokens == list(range(100, 100 + len(tokens))) for tokens in kept)
    assert len(set(map(len, kept))) > 3


def test_smoothing_takes_no_more_than_there_is():
    stage = icot_si(smoothing=0.01).stages()[0].at_step(1, 8)
    lengths = {len(stage.lay_out(ROW, MARKERS, Random(i)).tokens) for i in range(300)}
    assert lengths == {4, 5, 6, 7, 8, 9}


def test_smoothing_is_a_matter_of_a_moment_and_not_of_the_whole_stage():
    """The samples with which a stage begins are the longest that it can draw."""
    stage = icot_si(smoothing=0.01).stages()[0]
    assert {len(stage.lay_out(ROW, MARKERS, Random(i)).tokens) for i in range(20)} == {9}


def test_validation_is_not_smoothed():
    stage = icot_si(tokens_per_stage=2, remove_all_beyond=8, smoothing=0.01).stages()[0]
    assert {tuple(stage.lay_out(ROW, MARKERS).tokens) for _ in range(20)} == {(1, 2, 12, 21, 31, 32, 91, 92)}


def test_smoothing_depends_on_the_draw_alone():
    stage = icot_si(smoothing=0.5).stages()[0].at_step(1, 8)
    first, again = (
        [stage.lay_out(LONG, MARKERS, draw) for _ in range(30)] for draw in (Random(1), Random(1))
    )
    assert first == again
    assert len({len(sample.tokens) for sample in first}) > 3


def test_the_stages_move_and_the_published_smoothing_is_the_default():
    method = IcotSi(kind="icot_si", training=TRAINING)
    assert all(stage.is_scheduled for stage in method.stages().values())
    assert (method.smoothing, method.tokens_per_stage, method.remove_all_beyond) == (4.0, 8, 39)
    assert (method.side, method.stages()[0].dropout) == ("left", True)


def test_every_stage_answers_from_the_question():
    for stage in icot_si().stages().values():
        for now in (stage, stage.at_step(2, 8)):
            decoding = now.decoding(MARKERS)
            assert decoding == GenerationSpec((), 0, "hidden", 8, ())
            assert (decoding.has_recurrent_latents, decoding.extra_modules) == (False, ())
            assert reread(decoding) == decoding
            assert (now.extra_modules(), now.frozen(), now.needs_teacher) == ({}, (), False)


def test_with_nothing_out_yet_it_is_chain_of_thought():
    cot = Cot(kind="cot", training=TRAINING).stages()[0]
    for row in (ROW, SHORT, BARE):
        assert icot_si().stages()[0].lay_out(row, MARKERS, Random(0)) == cot.lay_out(row, MARKERS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_and_its_gradients_equal_the_plain_ones(any_model, side):
    """Three tokens are out: a piece of a step is left in some rows, and nothing in others."""
    stage = icot_si(side=side, smoothing=2.0).stages()[0].at_step(4, 8)
    draw = Random(2)
    rows = draw_rows((5, (3, 2, 4)), (2, (2,)), (7, ()), (3, (1, 6)))
    assert_supervised_loss(stage, any_model, [stage.lay_out(row, IDS, draw) for row in rows])


def test_stages_without_a_removal_may_stop_early():
    """The last stage has the whole chain out, and stages of one token have no parts."""
    training, stop = {"steps": 1, "stop_early": {"patience": 1}}, {"stop_early": {"patience": 1}}
    assert IcotSi(kind="icot_si", training=TRAINING, overrides={5: stop}).training_of(5).stop_early
    kept = {number: {"stop_early": None} for number in range(5)}
    assert IcotSi(kind="icot_si", training=training, overrides=kept).training_of(5).stop_early
    assert IcotSi(kind="icot_si", training=training, tokens_per_stage=1).training_of(3).stop_early
    with pytest.raises(ValueError, match=r"training\.stop_early: stage 0 goes through 8 parts"):
        IcotSi(kind="icot_si", training=training, overrides={1: {"stop_early": None}})
