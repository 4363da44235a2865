import pytest

from copra.pruning.scoring import baselines
from copra.schema.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", 32, 50, 3, (LayerShape(4, 2, 8, 36), LayerShape(4, 1, 8, 40)) * 4)


def order(rows):
    return [(row["layer"], row["index"]) for row in sorted(rows, key=lambda row: row["score"])]


def test_deepest_deletes_upwards_of_the_last_layer():
    assert order(baselines.deepest(5)) == [(3, 3), (2, 2), (1, 1), (0, 0), (4, 4)]
    assert order(baselines.deepest(1)) == [(0, 0)]


@pytest.mark.parametrize(
    ("kind", "unit", "units"),
    [
        ("layers", "layer", [(i, i) for i in range(8)]),
        ("kv_groups", "kv_group", [(layer, group) for layer in range(8) for group in range(2 - layer % 2)]),
        ("heads", "head", [(layer, head) for layer in range(8) for head in range(4)]),
        ("neurons", "neuron", [(layer, i) for layer in range(8) for i in range(40 if layer % 2 else 36)]),
    ],
)
def test_random_is_an_order_of_all_units_that_the_seed_decides(kind, unit, units):
    rows = baselines.random(SHAPE, kind, 0)
    assert {row["unit"] for row in rows} == {unit}
    assert sorted(order(rows)) == units
    assert sorted(row["score"] for row in rows) == list(range(len(units)))
    assert rows == baselines.random(SHAPE, kind, 0)
    assert len({tuple(order(baselines.random(SHAPE, kind, seed))) for seed in range(20)}) == 20


def test_random_orders_stay_those_of_earlier_results():
    layers = [row["score"] for row in baselines.random(SHAPE, "layers", 0)]
    groups = [row["score"] for row in baselines.random(SHAPE, "kv_groups", 0)]
    assert layers == [3, 6, 0, 1, 2, 5, 4, 7]
    assert groups == [2, 9, 11, 0, 3, 8, 10, 1, 7, 5, 6, 4]
