"""Lines of figures: what they join, and how they are told apart."""

from recipes import recipe, table

from copra.report.lines import described, fillings, method_lines, panels


def lines(*recipes):
    return method_lines(described(table(*recipes)))


def points(line):
    return list(line.rows["left"])


def test_a_line_begins_at_the_dense_model_of_the_same_trainings():
    found = lines(
        recipe("more-cot"), recipe("coconut", "drop-1"), recipe("coconut"), recipe("coconut", "drop-2")
    )
    assert [(line.label, points(line)) for line in found] == [
        ("more-cot", ["dense"]),
        ("coconut", ["dense", "3 layers", "2 layers"]),
    ]
    assert list(found[1].path("flops").index) == ["2 layers", "3 layers", "dense"]


def test_recipes_of_another_order_are_another_line():
    found = lines(recipe("coconut"), recipe("coconut", "drop-1"), recipe("coconut", "drop-1", order="after"))
    assert [(line.label, list(line.rows["variant"])) for line in found] == [
        ("coconut, cut before", ["", "cut before"]),
        ("coconut, cut after", ["", "cut after"]),
    ]
    assert points(found[0]) == points(found[1]) == ["dense", "3 layers"]


def test_places_of_the_cut_are_named_by_the_training_that_follows():
    early = recipe("coconut", "drop-1", order="before")
    early[0] |= {"order": "llama > drop-1 > cot > coconut", "recipe": "early"}
    twice = recipe("coconut", "drop-2")
    twice[0] |= {"order": "llama > drop-2 > cot > drop-2 > coconut", "recipe": "twice"}
    found = lines(early, recipe("coconut", "drop-1"), twice)
    assert [line.label for line in found] == [
        "coconut, cut before cot",
        "coconut, cut before",
        "coconut, cut before cot and cut before",
    ]


def test_one_place_of_all_cuts_is_not_named():
    rows = described(table(recipe("coconut"), recipe("coconut", "drop-1", order="after")))
    (line,) = method_lines(rows)
    assert (line.label, list(line.rows["variant"])) == ("coconut", ["", ""])


def test_trainings_are_named_where_a_method_has_several():
    alone = recipe("coconut")
    alone[0] |= {"order": "llama > coconut", "recipe": "llama+coconut"}
    assert [line.label for line in lines(recipe("coconut"), alone)] == ["cot → coconut", "coconut"]


def test_bases_are_named_where_there_are_several():
    found = lines(recipe("coconut"), recipe("coconut", base="other"))
    assert [line.label for line in found] == ["llama: coconut", "other: coconut"]


def test_quantized_models_are_a_line_of_their_own():
    found = lines(
        recipe("coconut"),
        recipe("coconut", "drop-1"),
        recipe("coconut", small=True),
        recipe("coconut", "drop-1", small=True),
    )
    assert [line.label for line in found] == ["coconut", "coconut, quantized"]
    assert [points(line) for line in found] == [["dense", "3 layers"]] * 2
    assert [list(line.rows["quantized"]) for line in found] == [[False, False], [True, True]]


def fills(*recipes):
    return fillings(described(table(*recipes)))


def test_markers_are_filled_by_place_and_quantization():
    cuts = [recipe("coconut", "drop-1", order=order) for order in ("before", "after")]
    small = [recipe("coconut", "drop-1", order="before", small=True)]
    assert fills(recipe("coconut"), cuts[0]) == {"": "full"}
    assert fills(recipe("coconut"), *cuts) == {"": "full", "cut before": "full", "cut after": "none"}
    assert fills(recipe("coconut"), *small, *cuts) == {
        "": "full",
        "cut before": "full",
        "cut after": "none",
        "cut before, quantized": "left",
    }
    assert fills(recipe("coconut"), recipe("coconut", small=True)) == {"": "full", "quantized": "none"}
    assert fills(recipe("coconut"), recipe("coconut", base="other")) == {
        "": "full",
        "llama": "full",
        "other": "none",
    }


def test_cuts_that_leave_the_same_are_one_corner_of_the_line():
    second = recipe("coconut", "drop-1", 0.7)
    second[0] |= {"pruning": "other", "order": "llama > cot > other > coconut", "recipe": "other"}
    (line,) = lines(recipe("coconut", accuracy=0.9), recipe("coconut", "drop-1", 0.5), second)
    assert line.path("flops")["accuracy"].round(9).to_dict() == {"3 layers": 0.6, "dense": 0.9}


def test_dense_models_are_in_all_panels():
    rows = described(
        table(*(recipe("coconut", cut) for cut in ("dense", "drop-1", "width-50", "thin", "both")))
    )
    assert {title: list(part["left"]) for title, part in panels(rows).items()} == {
        "layers pruned": ["dense", "3 layers"],
        "width pruned": ["dense", "width 0.5", "neurons 0.5"],
        "layers and width pruned": ["dense", "2 layers, width 0.5"],
    }
    assert list(panels(rows[:1])) == [""]


def healed(method, cut, kind, accuracy=0.5):
    rows = recipe("more-cot" if method == "heal" else method, cut, accuracy)
    steps = ["llama", "cot", cut, "heal", *([method] if method != "heal" else [])]
    for row in rows:
        row |= {"order": " > ".join(steps), "recipe": "+".join(steps), "kind": kind, "method": method}
    return rows


def test_a_line_joins_a_method_over_cuts_that_were_healed():
    cot = recipe("more-cot")
    cot[0] |= {"order": "llama > cot", "recipe": "llama+cot", "method": "cot"}
    found = lines(
        cot,
        recipe("coconut"),
        healed("coconut", "drop-2", "coconut"),
        healed("coconut", "width-50", "coconut"),
        healed("heal", "drop-2", "cot"),
    )
    assert [(line.label, line.method, points(line)) for line in found] == [
        ("coconut", "coconut", ["dense", "2 layers", "width 0.5"]),
        ("cot", "cot", ["dense", "2 layers"]),
    ]
    # The variant is a filling: nothing tells healed cuts from one another.
    assert {variant for line in found for variant in line.rows["variant"]} == {""}


def test_a_method_right_after_the_cut_does_not_heal():
    cot = recipe("more-cot")
    cot[0] |= {"order": "llama > cot", "recipe": "llama+cot", "method": "cot"}
    found = lines(cot, recipe("coconut", "drop-2"))
    assert [(line.method, points(line)) for line in found] == [("cot", ["dense"]), ("coconut", ["2 layers"])]
