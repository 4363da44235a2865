"""Which layers a loop visits, how deep that is, and which loops are refused."""

import pytest
from pydantic import ValidationError

from copra.schema.loop import Loop
from copra.schema.shape import LayerShape, ModelShape


@pytest.mark.parametrize(
    ("layers", "times", "visits"),
    [
        ("all", 1, [0, 1, 2, 3]),
        ("all", 2, [0, 1, 2, 3, 0, 1, 2, 3]),
        ([0, 3], 2, [0, 1, 2, 3, 0, 1, 2, 3]),
        ([1, 2], 3, [0, 1, 2, 1, 2, 1, 2, 3]),
        ([3, 3], 2, [0, 1, 2, 3, 3]),
    ],
)
def test_a_block_is_visited_again_and_again(layers, times, visits):
    loop = Loop(layers=layers, times=times)
    assert loop.visits(4) == visits
    assert loop.passes(len(visits)) == len(visits) / 4


def test_a_shape_has_a_layer_for_each_visit():
    first, second = LayerShape(4, 2, 8, 40), LayerShape(2, 1, 8, 24)
    shape = ModelShape("llama", 32, 50, 3, (first, second))
    assert shape.looped(Loop(layers=(1, 1), times=3)).layers == (first, second, second, second)
    assert shape.looped(None) is shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [2, 1]}, "ends with layer 1, before its first one"),
        ({"layers": [-1, 1]}, "greater than or equal to 0"),
        ({"layers": [1]}, "Field required"),
        ({"layers": "some"}, "'all'"),
        ({"times": 0}, "greater than or equal to 1"),
    ],
)
def test_a_loop_that_is_none_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Loop(**settings)


def test_a_loop_that_does_not_fit_a_model_is_explained():
    assert Loop(layers=(1, 3)).problem(4, "llama") is None
    assert Loop(layers=(1, 4)).problem(4, "llama") == (
        "layers: there is no layer 4. llama has 4 layers, counted from 0."
    )
    assert Loop(times=129).problem(4, "llama") == ("times: 516 visits of layers are more than 512. Lower it.")
