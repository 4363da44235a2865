"""Samples written out by hand. Question 1 2, steps [11, 12] [21] [31, 32], answer 91 92."""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from pydantic import ValidationError

from copra.data.sequences import GenerationSpec, Markers, TokenRow, lay_out
from copra.methods import Coconut, Cot, Looped, NoCot
from helpers.manifests import provenance, reread

MARKERS = Markers(start=7, latent=8, end=9)
ROW = TokenRow("row", question=[1, 2], steps=[[11, 12], [21], [31, 32]], answer=[91, 92])
SHORT = TokenRow("short", question=[3], steps=[[41]], answer=[93])
BARE = TokenRow("bare", question=[4], steps=[], answer=[94])
TRAINING = {"steps": 1}
_ = -100


def sample_of(method, stage, row=ROW, draw=None):
    return method.stages()[stage].lay_out(row, MARKERS, draw or Random(0))


def coconut(**settings):
    return Coconut(kind="coconut", training=TRAINING, **settings)


def test_no_cot_supervises_the_answer_alone():
    sample = sample_of(NoCot(kind="no_cot", training=TRAINING), 0)
    assert sample.tokens == [1, 2, 91, 92]
    assert sample.labels == [_, _, 91, 92]
    assert (sample.id, sample.first_latent, sample.n_latents) == ("row", 2, 0)


def test_looped_layers_read_what_no_cot_reads():
    looped, plain = Looped(kind="looped", training=TRAINING), NoCot(kind="no_cot", training=TRAINING)
    assert sample_of(looped, 0) == sample_of(plain, 0)
    spec, expected = (each.stages()[0].decoding(MARKERS) for each in (looped, plain))
    assert spec == replace(expected, loop=looped.loop) == reread(spec)
    assert spec.to_json() == expected.to_json() | {"loop": {"layers": "all", "times": 2}}
    # Nothing of it where there is no loop, so that manifests and cached answers stay what they were.
    assert "loop" not in expected.to_json()
    assert "loop" not in provenance(decoding=expected).model_dump_json()


def test_cot_supervises_the_steps_and_the_answer():
    sample = sample_of(Cot(kind="cot", training=TRAINING), 0)
    assert sample.tokens == [1, 2, 11, 12, 21, 31, 32, 91, 92]
    assert sample.labels == [_, _, 11, 12, 21, 31, 32, 91, 92]


# c = 2 latents a step, K = 2: stages 0, 1, 2 and the last one, 3.
WORKED = {
    0: ([1, 2, 7, 9, 11, 12, 21, 31, 32, 91, 92], [_, _, _, _, 11, 12, 21, 31, 32, 91, 92], 0),
    1: ([1, 2, 7, 8, 8, 9, 21, 31, 32, 91, 92], [_, _, _, _, _, _, 21, 31, 32, 91, 92], 2),
    2: ([1, 2, 7, 8, 8, 8, 8, 9, 31, 32, 91, 92], [_, _, _, _, _, _, _, _, 31, 32, 91, 92], 4),
    3: ([1, 2, 7, 8, 8, 8, 8, 9, 91, 92], [_, _, _, _, _, _, _, _, 91, 92], 4),
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_coconut_puts_latents_in_the_place_of_steps(stage):
    method = coconut(latents_per_step=2, max_latent_stage=2)
    assert list(method.stages()) == [0, 1, 2, 3]
    sample = sample_of(method, stage)
    tokens, labels, latents = WORKED[stage]
    assert (sample.tokens, sample.labels) == (tokens, labels)
    assert (sample.first_latent, sample.n_latents) == (3, latents)
    assert sample.tokens[3 : 3 + latents] == [8] * latents


# A row of one step only. Stages 1 and 2 take their own number of latents whatever the row has.
@pytest.mark.parametrize(
    ("stage", "padded", "tokens"),
    [
        (1, True, [3, 7, 8, 8, 9, 93]),
        (2, True, [3, 7, 8, 8, 8, 8, 9, 93]),
        (3, True, [3, 7, 8, 8, 8, 8, 9, 93]),
        (1, False, [3, 7, 8, 8, 9, 93]),
        (2, False, [3, 7, 8, 8, 8, 8, 9, 93]),
        (3, False, [3, 7, 8, 8, 9, 93]),
    ],
)
def test_a_row_with_fewer_steps_than_stages(stage, padded, tokens):
    method = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=padded)
    sample = sample_of(method, stage, SHORT)
    assert sample.tokens == tokens
    assert sample.labels == [_] * (len(tokens) - 1) + [93]
    assert sample.n_latents == tokens.count(8)


def test_without_padding_a_row_of_many_steps_still_stops_at_the_maximum():
    method = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=False)
    assert sample_of(method, 3).n_latents == 4


def test_answers_with_more_latents_than_were_trained_are_noted():
    method = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=False)
    # SHORT has one step: 2 latents in training (above), and 4 in its answer.
    assert method.stages()[3].decoding(MARKERS).latents == 4
    (note,) = method.notes()
    assert note.startswith("pad_latent_to_max: false trains the last stage on min(m, K)*c latents")
    assert note.endswith("every question is answered with K*c = 4")
    assert coconut().notes() == coconut(pad_latent_to_max=False, thought="none").notes() == []


def test_without_thought_steps_go_and_nothing_comes():
    method = coconut(latents_per_step=2, max_latent_stage=2, thought="none")
    tokens = [sample_of(method, stage).tokens for stage in range(4)]
    assert tokens == [
        [1, 2, 11, 12, 21, 31, 32, 91, 92],
        [1, 2, 21, 31, 32, 91, 92],
        [1, 2, 31, 32, 91, 92],
        [1, 2, 91, 92],
    ]
    assert sample_of(method, 1).labels == [_, _, 21, 31, 32, 91, 92]
    decoding = method.stages()[3].decoding(MARKERS)
    assert (decoding.prefix_ids, decoding.latents, decoding.suffix_ids, decoding.has_recurrent_latents) == (
        (),
        0,
        (),
        False,
    )


def test_pause_as_thought_has_the_same_samples_and_reads_embeddings():
    pause, hidden = (coconut(latents_per_step=2, thought=thought) for thought in ("embedding", "hidden"))
    for stage in range(5):
        assert sample_of(pause, stage) == sample_of(hidden, stage)
        assert pause.stages()[stage].thought == "embedding"
        assert hidden.stages()[stage].thought == "hidden"
    assert pause.stages()[4].decoding(MARKERS) == GenerationSpec((7,), 6, "embedding", 8, (9,))
    assert not pause.stages()[4].decoding(MARKERS).has_recurrent_latents


def test_the_latent_input_goes_with_the_checkpoint():
    assert {stage.latent_input for stage in coconut(latent_input="scaled").stages().values()} == {"scaled"}
    decoding = coconut(latent_input="scaled").stages()[4].decoding(MARKERS)
    assert decoding.latent_input == "scaled"
    assert reread(decoding) == decoding
    assert coconut().stages()[4].decoding(MARKERS).latent_input == "raw"


def test_a_checkpoint_answers_with_the_latents_of_its_stage():
    stages = coconut(latents_per_step=2, max_latent_stage=2).stages()
    assert [stages[i].decoding(MARKERS).latents for i in range(4)] == [0, 2, 4, 4]
    decoding = stages[3].decoding(MARKERS)
    assert (decoding.prefix_ids, decoding.suffix_ids, decoding.has_recurrent_latents) == ((7,), (9,), True)
    assert not stages[0].decoding(MARKERS).has_recurrent_latents
    assert reread(decoding) == decoding


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"max_latent_stage": 6}, list(range(8))),
        ({"first_stage": 1}, [1, 2, 3, 4]),
        ({"first_stage": 9}, [4]),
        ({"curriculum": False}, [4]),
        ({"curriculum": False, "first_stage": 2, "max_latent_stage": 2}, [3]),
    ],
)
def test_there_are_k_plus_2_stages_or_fewer_by_request(settings, numbers):
    assert list(coconut(**settings).stages()) == numbers


def test_without_curriculum_the_last_stage_is_the_same():
    assert coconut(curriculum=False).stages()[4] == coconut().stages()[4]
    # Mixing is part of a curriculum: without one there is nothing to mix.
    assert coconut(curriculum=False, stage_mixing=True).stages()[4] == coconut().stages()[4]


def test_mixing_draws_earlier_stages_with_rising_weight():
    stage = coconut(stage_mixing=True).stages()[3]
    draw = Random(5)
    counts = Counter(stage.lay_out(ROW, MARKERS, draw).n_latents for _ in range(20_000))
    # Stages 0 to 3 have weights 1 to 4, and stage i has i latents (c = 1). Standard deviation: 0.3%.
    for latents, share in {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}.items():
        assert counts[latents] / 20_000 == pytest.approx(share, abs=0.015)
    assert stage.decoding(MARKERS).latents == 3


def test_mixing_in_the_last_stage_draws_from_all_and_decodes_as_the_last():
    stage = coconut(stage_mixing=True, max_latent_stage=1).stages()[2]
    assert stage.weights == (1.0, 2.0, 3.0)
    draw = Random(0)
    lengths = Counter(len(stage.lay_out(ROW, MARKERS, draw).tokens) for _ in range(6000))
    # Lengths by hand: stage 0 has 11 tokens, stage 1 (one latent for two tokens) 10, the last 7.
    assert set(lengths) == {11, 10, 7}
    assert lengths[7] / 6000 == pytest.approx(1 / 2, abs=0.03)
    assert stage.decoding(MARKERS).latents == 1
    # The validation split, without a draw, is laid out as the last stage too.
    assert {len(stage.lay_out(ROW, MARKERS).tokens) for _ in range(20)} == {7}


def test_mixing_depends_on_the_draw_alone():
    method = coconut(stage_mixing=True)
    first, again = (
        [sample_of(method, 4, draw=draw) for _ in range(30)] for draw in (Random("x"), Random("x"))
    )
    assert first == again


def test_a_uniform_draw_takes_each_stage_of_a_row_as_often():
    """ROW has 3 steps, so stages 0 to 3; in stage 1 of K = 4 the others come by uniform draws alone."""
    stage = coconut(uniform_prob=0.4, max_latent_stage=4).stages()[1]
    draw = Random(6)
    counts = Counter(tuple(stage.lay_out(ROW, MARKERS, draw).tokens) for _ in range(20_000))
    # 0.4 / 4 each, and the other 0.6 to stage 1. Standard deviation: 0.4% at most.
    shares = {
        (1, 2, 7, 9, 11, 12, 21, 31, 32, 91, 92): 0.1,
        (1, 2, 7, 8, 9, 21, 31, 32, 91, 92): 0.7,
        (1, 2, 7, 8, 8, 9, 31, 32, 91, 92): 0.1,
        (1, 2, 7, 8, 8, 8, 9, 91, 92): 0.1,
    }
    assert set(counts) == set(shares)
    for tokens, share in shares.items():
        assert counts[tokens] / 20_000 == pytest.approx(share, abs=0.015)
    # What is learned does not change: validation and answers are those of stage 1.
    assert stage.lay_out(ROW, MARKERS).tokens == [1, 2, 7, 8, 9, 21, 31, 32, 91, 92]
    assert stage.decoding(MARKERS).latents == 1


def test_a_uniform_draw_of_a_row_with_more_steps_than_stages_takes_the_last_more_often():
    """K = 1: of the stages 0, 1, 2, 3 of ROW's steps, 2 and 3 are the last one, with one latent in all."""
    stage = coconut(uniform_prob=1, max_latent_stage=1).stages()[0]
    draw = Random(7)
    counts = Counter(tuple(stage.lay_out(ROW, MARKERS, draw).tokens) for _ in range(20_000))
    shares = {
        (1, 2, 7, 9, 11, 12, 21, 31, 32, 91, 92): 0.25,
        (1, 2, 7, 8, 9, 21, 31, 32, 91, 92): 0.25,
        (1, 2, 7, 8, 9, 91, 92): 0.5,
    }
    assert set(counts) == set(shares)
    for tokens, share in shares.items():
        assert counts[tokens] / 20_000 == pytest.approx(share, abs=0.015)


def test_a_uniform_draw_of_a_row_without_steps_is_stage_0():
    stage = coconut(uniform_prob=1).stages()[4]
    assert {tuple(stage.lay_out(BARE, MARKERS, Random(i)).tokens) for i in range(20)} == {(4, 7, 9, 94)}


def test_uniform_and_mixed_draws_go_together():
    """Stage 1 of K = 1: half the time 0 or 1 with weights 1 and 2, half the time 0, 1, 2 or 3 evenly."""
    stage = coconut(uniform_prob=0.5, stage_mixing=True, max_latent_stage=1).stages()[1]
    draw = Random(8)
    counts = Counter(len(stage.lay_out(ROW, MARKERS, draw).tokens) for _ in range(20_000))
    # Stage 0 has 11 tokens, stage 1 has 10, the last 7.
    shares = {11: 1 / 2 / 3 + 1 / 2 / 4, 10: 1 / 2 * 2 / 3 + 1 / 2 / 4, 7: 1 / 2 * 2 / 4}
    assert set(counts) == set(shares)
    for length, share in shares.items():
        assert counts[length] / 20_000 == pytest.approx(share, abs=0.015)


def test_uniform_draws_are_made_anew_each_epoch_and_come_from_the_draw_alone():
    stage = coconut(uniform_prob=0.1).stages()[4]
    assert stage.draws
    assert not coconut().stages()[4].draws
    first, again = ([stage.lay_out(ROW, MARKERS, draw) for _ in range(30)] for draw in (Random(1), Random(1)))
    assert first == again


def test_projected_latents_bring_a_projection_and_need_it_to_answer():
    for stage in coconut(latent_input="projected", first_stage=1).stages().values():
        assert stage.extra_modules() == {"projection": {}}
        decoding = stage.decoding(MARKERS)
        assert decoding.latent_input == "projected"
        assert decoding.extra_modules == ("projection",)
        assert reread(decoding) == decoding
    # Without latents there is nothing to project.
    assert coconut(latent_input="projected").stages()[0].decoding(MARKERS).extra_modules == ()
    assert coconut().stages()[4].extra_modules() == {}
    assert coconut().stages()[4].decoding(MARKERS).extra_modules == ()


def test_a_row_without_steps():
    """Stages 1 and 2 take their latents all the same; without padding the last stage has none."""
    method = coconut(latents_per_step=2, max_latent_stage=2)
    tokens = [sample_of(method, stage, BARE).tokens for stage in range(4)]
    assert tokens == [[4, 7, 9, 94], [4, 7, 8, 8, 9, 94], [4, 7, *[8] * 4, 9, 94], [4, 7, *[8] * 4, 9, 94]]
    method = coconut(latents_per_step=2, max_latent_stage=2, pad_latent_to_max=False)
    assert sample_of(method, 3, BARE).tokens == [4, 7, 9, 94]


def test_latents_need_their_markers():
    with pytest.raises(ValueError, match="markers"):
        lay_out(ROW, skip=1, latents=1, markers=None)


def test_stages_survive_their_json():
    ways = {
        "stage_mixing": True,
        "pad_latent_to_max": False,
        "uniform_prob": 0.3,
        "latent_input": "projected",
    }
    for stage in [*coconut(**ways).stages().values(), *coconut(auxiliary_decoder={}).stages().values()]:
        assert type(stage).model_validate(json.loads(json.dumps(stage.canonical()))) == stage


def test_overrides_change_single_stages():
    method = coconut(overrides={2: {"learning_rate": 0.5}, 4: {"epochs": 3}})
    assert method.training_of(1) == method.training
    assert method.training_of(2).learning_rate == 0.5
    assert method.training_of(2).steps == 1
    # Another length replaces the length of `training`, in whichever of the two keys it is given.
    assert (method.training_of(4).epochs, method.training_of(4).steps) == (3, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({5: {"steps": 2}}, "no stage 5"),
        ({1: {"learning_speed": 2}}, "learning_speed"),
        ({1: {"steps": 2, "epochs": 1}}, "exactly one"),
        ({1: {"micro_batch_size": 3}}, "multiple"),
    ],
)
def test_wrong_overrides_are_refused(overrides, message):
    with pytest.raises(ValidationError, match=message):
        coconut(overrides=overrides)
