from copra.importance import baselines
from copra.models.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", 32, 50, 3, (LayerShape(4, 2, 8, 40), LayerShape(4, 1, 8, 40)) * 4)


def order(rows):
    return [(row["layer"], row["index"]) for row in sorted(rows, key=lambda row: row["score"])]


def test_deepest_deletes_upwards_of_the_last_layer():
    assert order(baselines.deepest(5)) == [(3, 3), (2, 2), (1, 1), (0, 0), (4, 4)]
    assert order(baselines.deepest(1)) == [(0, 0)]


def test_random_is_an_order_of_all_units_that_the_seed_decides():
    groups = baselines.random(SHAPE, "kv_group", 0)
    assert sorted(order(groups)) == [(layer, group) for layer in range(8) for group in range(2 - layer % 2)]
    assert groups == baselines.random(SHAPE, "kv_group", 0)
    assert sorted(order(baselines.random(SHAPE, "layer", 0))) == [(i, i) for i in range(8)]
    orders = {tuple(order(baselines.random(SHAPE, "layer", seed))) for seed in range(20)}
    assert len(orders) == 20
