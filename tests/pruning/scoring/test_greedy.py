"""The greedy search against one written plainly, and a search that was killed."""

import itertools
from dataclasses import replace

import pytest
from ablations import batches_of, make_checkpoint, plain_loss, without

from copra.pruning.scoring.ablation import Ablation, Questions
from copra.pruning.scoring.greedy import greedy
from copra.pruning.scoring.leave_one_out import leave_one_out
from copra.utils.errors import CopraError


@pytest.fixture
def checkpoint(word_base):
    return make_checkpoint(word_base(layers=5, initializer_range=0.3))


@pytest.fixture
def make_ablation(checkpoint, rows, tmp_path):
    def make(state="state"):
        return Ablation(checkpoint, tmp_path / state, batches=batches_of(checkpoint, rows[:4]))

    return make


@pytest.fixture
def measured(monkeypatch):
    """The layers left in each evaluation, in order; `stop_after` kills the next search after so many."""

    class Measured(list):
        stop_after = None

    done, loss = Measured(), Ablation._loss

    def counted(self, cut):
        if len(done) == done.stop_after:
            raise KeyboardInterrupt
        done.append(cut.layers)
        return loss(self, cut)

    monkeypatch.setattr(Ablation, "_loss", counted)
    return done


def order(rows):
    assert [row["score"] for row in rows] == list(range(len(rows)))
    assert all(row["layer"] == row["index"] for row in rows)
    return [row["layer"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("protect", [(), (0, 3)])
def test_always_the_layer_goes_that_is_missed_least(checkpoint, make_ablation, rows, protect):
    gone = []
    for _ in range(3):
        losses = {}
        for layer in {0, 1, 2, 3, 4} - set(gone) - set(protect):
            model = without(checkpoint, [("layers", each, each) for each in [*gone, layer]])
            losses[layer] = plain_loss(checkpoint, model, rows[:4])
        gone.append(min(losses, key=losses.get))
    found = greedy(make_ablation(), "loss", 3, protect)
    assert order(found) == gone
    assert {(row["unit"], row["metric"], row["length"]) for row in found} == {("layer", "greedy_loss", 1)}
    if not protect:
        alone = sorted(leave_one_out(make_ablation(), "layers", "loss"), key=lambda row: row["score"])
        assert gone != [row["layer"] for row in alone][:3], "one look would give the same, which proves less"


def test_of_equal_layers_the_lowest_goes(checkpoint, rows, tmp_path):
    """All are equal where no answer can be right."""
    hopeless = [replace(row, answer="999") for row in rows[:3]]
    ablation = Ablation(checkpoint, tmp_path, questions=Questions(hopeless, max_new_tokens=4))
    found = greedy(ablation, "accuracy", 3, [1])
    assert order(found) == [0, 2, 3]
    assert {row["metric"] for row in found} == {"greedy_accuracy"}


def test_the_most_accurate_goes_on(checkpoint, rows, tmp_path, monkeypatch):
    right = {(0, 1, 2, 4): 3, (0, 1, 3, 4): 3, (0, 1, 2): 1, (1, 2, 4): 2, (0, 2, 4): 2}
    monkeypatch.setattr(Ablation, "answers", lambda self, cut: (right.get(cut.layers, 0), 4))
    assert order(greedy(Ablation(checkpoint, tmp_path), "accuracy", 2)) == [2, 0]
    right = {(0, 1, 2, 4): 3, (0, 1, 3, 4): 2, (0, 1, 2): 1, (1, 2, 4): 2, (0, 2, 4): 3}
    assert order(greedy(Ablation(checkpoint, tmp_path), "accuracy", 2)) == [3, 1]


def test_a_search_measures_each_candidate_once(make_ablation, measured):
    greedy(make_ablation(), "loss", 3)
    assert len(measured) == 5 + 4 + 3
    assert len(set(measured)) == len(measured)
    # One layer less is what leaving one out measures too: of it only the whole model is new.
    leave_one_out(make_ablation(), "layers", "loss")
    assert measured[12:] == [(0, 1, 2, 3, 4)]
    greedy(make_ablation(), "loss", 4)
    assert len(measured) == 13 + 2


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 7])
def test_a_killed_search_goes_on_where_it_was(make_ablation, measured, after):
    expected = greedy(make_ablation("unbroken"), "loss", 3)
    unbroken = list(measured)
    measured.clear()
    measured.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        greedy(make_ablation(), "loss", 3)
    measured.stop_after = None
    assert greedy(make_ablation(), "loss", 3) == expected
    assert measured == unbroken


@pytest.mark.parametrize(
    ("removals", "protect", "left"),
    [(5, [], 4), (4, [1], None), (5, [1], 4), (4, [1, 2], 3)],
)
def test_one_layer_stays(make_ablation, removals, protect, left, measured):
    if left is None:
        assert len(greedy(make_ablation(), "loss", removals, protect)) == removals
        return
    with pytest.raises(CopraError, match=rf"^importance.greedy_removals: {removals} .* leaves {left}\."):
        greedy(make_ablation(), "loss", removals, protect)
    assert not measured


def test_all_layers_that_can_go_go_where_no_number_is_given(make_ablation):
    assert greedy(make_ablation(), "loss", None) == greedy(make_ablation(), "loss", 4)
    assert greedy(make_ablation(), "loss", None, [1, 2]) == greedy(make_ablation(), "loss", 3, [1, 2])


@pytest.mark.parametrize("removals", [1, None])
def test_a_search_with_all_layers_protected_is_refused(make_ablation, removals, measured):
    with pytest.raises(CopraError, match=r"^importance\.greedy_protect: no layer can go\. .*5 are protected"):
        greedy(make_ablation(), "loss", removals, [0, 1, 2, 3, 4])
    assert not measured


def test_a_layer_that_is_not_there_cannot_be_protected(make_ablation):
    with pytest.raises(CopraError, match=r"^importance.greedy_protect: there is no layer 5; .* has 5 layers"):
        greedy(make_ablation(), "loss", 1, [0, 5])


def test_58_evaluations_for_4_of_16_layers(word_base, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Ablation, "loss", lambda self, cut: asked.append(cut.layers) or len(asked))
    greedy(Ablation(make_checkpoint(word_base(layers=16)), tmp_path), "loss", 4)
    assert len(asked) == len(set(asked)) == 58
    assert all(len(left) == 16 - removed for removed, left in zip(removals(), asked, strict=True))


def removals():
    return itertools.chain(*([number + 1] * (16 - number) for number in range(4)))
