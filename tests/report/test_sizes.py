"""Labels of what is left of a model, from numbers of units."""

import pytest
from recipes import CUTS, recipe, table

from copra.report.sizes import in_order, left_labels, pruned_units, quantized

EXPECTED = {
    "dense": ("", "dense"),
    "drop-1": ("layers", "3 layers"),
    "drop-2": ("layers", "2 layers"),
    "drop-3": ("layers", "1 layer"),
    "width-75": ("kv_groups, neurons", "width 0.75"),
    "width-50": ("kv_groups, neurons", "width 0.5"),
    "groups-half": ("kv_groups", "KV groups 0.5"),
    "thin": ("neurons", "neurons 0.5"),
    "both": ("layers, kv_groups, neurons", "2 layers, width 0.5"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_units_that_go_with_a_layer_or_a_group_are_not_pruned(cut):
    rows = table(recipe("coconut"), recipe("coconut", cut))
    assert (pruned_units(rows)[-1], left_labels(rows)[-1]) == EXPECTED[cut]


def test_query_heads_are_pruned_within_their_groups():
    rows = table(recipe("coconut"), recipe("coconut", "drop-2", heads=4))
    assert pruned_units(rows)[-1] == "layers, heads"
    assert left_labels(rows)[-1] == "2 layers, query heads 0.5"


@pytest.mark.parametrize(("neurons", "label"), [(250, "width ~0.45"), (110, "width 0.26")])
def test_uneven_widths_are_rounded_so_that_cuts_of_one_budget_have_one_label(neurons, label):
    """A quarter of the groups is left, and 0.625 of the neurons, or 0.275, which counts as the same."""
    cut = {"kv_groups": 2, "heads": 4, "neurons": neurons}
    rows = table(recipe("coconut"), recipe("coconut", "width-50", **cut))
    assert left_labels(rows)[-1] == label


def test_each_base_has_its_own_sizes():
    small = recipe("coconut", base="small", layers=2, kv_groups=4, heads=8, neurons=200)
    rows = table(recipe("coconut"), small, recipe("coconut", "drop-2"))
    assert pruned_units(rows) == ["", "", "layers"]


def test_quantized_weights_take_fewer_bytes_than_the_bases():
    rows = table(recipe("coconut"), recipe("coconut", "drop-2"), recipe("coconut", small=True))
    assert quantized(rows) == [False, False, True]
    headers = rows.assign(checkpoint_bytes=[400_000.0, 190_000.0, 400_000.0])
    assert quantized(headers) == [False, False, False]


def test_labels_are_ordered_from_the_dense_model_to_the_smallest():
    rows = table(*(recipe("coconut", cut) for cut in reversed(CUTS)))
    rows = rows.assign(pruned=pruned_units(rows), left=left_labels(rows))
    assert in_order(rows) == [
        "dense",
        "KV groups 0.5",
        "3 layers",
        "2 layers",
        "1 layer",
        "neurons 0.5",
        "width 0.75",
        "width 0.5",
        "2 layers, width 0.5",
    ]
