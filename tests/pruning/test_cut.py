"""Cuts by hand, of a model with groups of two query heads, three of one and one of four."""

import re

import pytest

from copra.pruning.cut import KeptUnits
from copra.schema.shape import LayerShape, ModelShape
from copra.schema.units import group_size
from copra.utils.errors import CopraError

SHAPE = ModelShape(
    "llama", 32, 50, 3, (LayerShape(4, 2, 8, 6), LayerShape(3, 3, 8, 5), LayerShape(8, 2, 8, 3))
)
NONE = (None, None, None)
WHOLE = KeptUnits((0, 1, 2), NONE, NONE)


def test_a_whole_cut_keeps_everything():
    assert KeptUnits.whole(SHAPE) == WHOLE
    assert WHOLE.shape(SHAPE) == SHAPE
    assert [group_size(layer) for layer in SHAPE.layers] == [2, 1, 4]
    assert WHOLE.heads_of(SHAPE, 0) == (0, 1, 2, 3)
    assert WHOLE.neurons_of(SHAPE, 2) == (0, 1, 2)
    assert WHOLE.kv_groups_of(SHAPE, 1) == (0, 1, 2)


@pytest.mark.parametrize(
    ("units", "layers", "heads", "neurons"),
    [
        ([], (0, 1, 2), NONE, NONE),
        ([("layers", 1, 1)], (0, 2), NONE, NONE),
        ([("kv_groups", 0, 0)], (0, 1, 2), ((2, 3), None, None), NONE),
        ([("kv_groups", 2, 1)], (0, 1, 2), (None, None, (0, 1, 2, 3)), NONE),
        ([("kv_groups", 1, 1), ("kv_groups", 1, 2)], (0, 1, 2), (None, (0,), None), NONE),
        ([("heads", 0, 3), ("heads", 0, 0)], (0, 1, 2), ((1, 2), None, None), NONE),
        ([("neurons", 1, 4), ("neurons", 1, 0)], (0, 1, 2), NONE, (None, (1, 2, 3), None)),
        (
            [("neurons", 0, 5), ("kv_groups", 2, 0), ("layers", 0, 0), ("heads", 2, 5), ("layers", 1, 1)],
            (2,),
            (None, None, (4, 6, 7)),
            ((0, 1, 2, 3, 4), None, None),
        ),
    ],
)
def test_units_go(units, layers, heads, neurons):
    assert WHOLE.without(SHAPE, units) == KeptUnits(layers, heads, neurons)
    assert KeptUnits.whole(SHAPE) == WHOLE, "a cut is never changed"


def test_what_has_gone_stays_gone():
    units = [("heads", 2, 0), ("layers", 1, 1), ("heads", 2, 6), ("neurons", 0, 2), ("heads", 0, 1)]
    one_by_one = WHOLE
    for unit in units:
        one_by_one = one_by_one.without(SHAPE, iter([unit]))
    assert one_by_one == WHOLE.without(SHAPE, iter(units))
    assert one_by_one == KeptUnits(
        (0, 2), ((0, 2, 3), None, (1, 2, 3, 4, 5, 7)), ((0, 1, 3, 4, 5), None, None)
    )
    assert one_by_one.without(SHAPE, units) == one_by_one


def test_a_group_stays_as_long_as_one_of_its_heads():
    cut = WHOLE.without(SHAPE, [("heads", 2, head) for head in (0, 1, 2, 5)])
    assert cut.heads_of(SHAPE, 2) == (3, 4, 6, 7)
    assert cut.kv_groups_of(SHAPE, 2) == (0, 1)
    assert cut.without(SHAPE, [("heads", 2, 3)]).kv_groups_of(SHAPE, 2) == (1,)


@pytest.mark.parametrize(
    ("cut", "layers"),
    [
        (KeptUnits((2,), NONE, NONE), [(8, 2, 8, 3)]),
        (KeptUnits((0, 1, 2), ((2, 3), (1,), (5,)), NONE), [(2, 1, 8, 6), (1, 1, 8, 5), (1, 1, 8, 3)]),
        (KeptUnits((0, 2), ((0, 3), None, (0, 1, 3, 4, 5, 6)), NONE), [(2, 2, 8, 6), (6, 2, 8, 3)]),
        (KeptUnits((0, 1), NONE, ((5,), (0, 3), (1,))), [(4, 2, 8, 1), (3, 3, 8, 2)]),
        # What a layer that goes would have kept is of no interest.
        (KeptUnits((0,), (None, (), (0, 1, 4)), (None, (), None)), [(4, 2, 8, 6)]),
    ],
)
def test_the_shape_that_is_left(cut, layers):
    left = cut.shape(SHAPE)
    assert left.layers == tuple(LayerShape(*sizes) for sizes in layers)
    assert (left.family, left.hidden, left.vocabulary, left.ffn_matrices) == ("llama", 32, 50, 3)


def test_heads_of_gpt2_are_groups_of_one():
    shape = ModelShape("gpt2", 24, 50, 2, (LayerShape(3, 3, 8, 96),) * 2)
    for kind in ("heads", "kv_groups"):
        left = KeptUnits.whole(shape).without(shape, [(kind, 1, 0)]).shape(shape)
        assert left.layers == (LayerShape(3, 3, 8, 96), LayerShape(2, 2, 8, 96))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (KeptUnits((), NONE, NONE), "no layer would be left"),
        (KeptUnits((0, 1), (None, (), None), NONE), "no query head would be left in layer 1"),
        (KeptUnits((0, 1), NONE, (None, (), None)), "no neuron would be left in layer 1"),
        (
            KeptUnits((0, 2), ((0, 1, 3), None, None), NONE),
            r"groups of layer 0 would keep \{0: 2, 1: 1\} query heads",
        ),
        (
            KeptUnits((2,), (None, None, (1, 4, 5)), NONE),
            r"groups of layer 2 would keep \{0: 1, 1: 2\} query heads",
        ),
        (
            KeptUnits((0, 3), NONE, NONE),
            "the model keeps layers whose indices do not rise or lie outside 0 to 2",
        ),
        (KeptUnits((1, 0), NONE, NONE), "the model keeps layers whose indices do not rise"),
        (
            KeptUnits((0,), ((2, 3, 0, 1), None, None), NONE),
            "layer 0 keeps query heads whose indices do not rise",
        ),
        (KeptUnits((0,), ((0, 0), None, None), NONE), "layer 0 keeps query heads whose indices do not rise"),
        (
            KeptUnits((1,), NONE, (None, (4, 5), None)),
            "layer 1 keeps neurons whose indices .* outside 0 to 4",
        ),
        (KeptUnits((1,), NONE, (None, (-1, 3), None)), "layer 1 keeps neurons whose indices"),
    ],
)
def test_illegal_cuts_are_refused(cut, message):
    with pytest.raises(CopraError, match=message):
        cut.shape(SHAPE)


@pytest.mark.parametrize(
    ("heads", "legal"),
    [
        # 3 and 4 of 4: taking one more is a smaller change than the loss of a group.
        ((0, 1, 2, 4, 5, 6, 7), "4 in each of the groups [0, 1]."),
        ((0, 1, 4, 5, 6, 7), "4 in each of the groups [0, 1]."),
        ((3, 4, 5, 6, 7), "4 in each of the groups [1]."),
    ],
)
def test_the_nearest_legal_choice_is_named(heads, legal):
    with pytest.raises(CopraError, match=re.escape(f"The nearest legal choice keeps {legal}")):
        KeptUnits((2,), (None, None, heads), NONE).shape(SHAPE)


def test_a_cut_comes_back_from_json():
    cut = KeptUnits((0, 2), ((1, 2), None, (4,)), (None, None, (0, 1)))
    assert cut.to_json() == {
        "layers": [0, 2],
        "heads": [[1, 2], None, [4]],
        "neurons": [None, None, [0, 1]],
    }
    assert KeptUnits.from_json(cut.to_json()) == cut
    assert hash(KeptUnits.from_json(cut.to_json())) == hash(cut)
