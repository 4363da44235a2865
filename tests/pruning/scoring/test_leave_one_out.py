"""Leave-one-out scores against models that lack the unit, made by hand in two ways."""

from dataclasses import replace

import pytest
from ablations import batches_of, make_checkpoint, plain_loss, without
from plain import by_unit

from copra.evaluation.accuracy import predictions
from copra.pruning.cut import KeptUnits
from copra.pruning.scoring.ablation import Ablation, Questions
from copra.pruning.scoring.leave_one_out import leave_one_out
from copra.pruning.surgery import cut_model
from copra.schema.metrics import SCORED_AS

UNITS = {
    "layers": [(layer, layer) for layer in range(3)],
    "kv_groups": [(layer, group) for layer in range(3) for group in range(2)],
    "heads": [(layer, head) for layer in range(3) for head in range(4)],
}


@pytest.fixture
def checkpoint(request, word_base):
    return make_checkpoint(word_base(layers=3, initializer_range=0.3), request.param)


@pytest.mark.parametrize(
    ("checkpoint", "kind"),
    [("cot", "layers"), ("latent", "kv_groups"), ("cot", "heads")],
    indirect=["checkpoint"],
)
def test_loss(checkpoint, rows, tmp_path, kind):
    ablation = Ablation(checkpoint, tmp_path, batches=batches_of(checkpoint, rows[:5]))
    found = by_unit(leave_one_out(ablation, kind, "loss"), SCORED_AS[kind], "loss")
    whole = plain_loss(checkpoint, checkpoint.model, rows[:5])
    for delete in [True, False] if kind == "layers" else [True]:
        expected = {
            (layer, index): plain_loss(
                checkpoint, without(checkpoint, [(kind, layer, index)], delete), rows[:5]
            )
            - whole
            for layer, index in UNITS[kind]
        }
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "kind"),
    [("latent", "layers"), ("cot", "kv_groups"), ("latent", "heads")],
    indirect=["checkpoint"],
)
def test_accuracy(checkpoint, rows, tmp_path, kind, monkeypatch):
    """An untrained model is never right, so what counts as right is a matter of what it writes."""
    monkeypatch.setattr("copra.evaluation.accuracy.extract_answer", lambda text: text)
    monkeypatch.setattr("copra.evaluation.accuracy.same_answer", lambda text, *_: len(text) % 3 == 0)
    decoding = checkpoint.decoding

    def accuracy(model):
        return predictions(replace(checkpoint, model=model), decoding, rows, 5, "number")["correct"].mean()

    ablation = Ablation(checkpoint, tmp_path, questions=Questions(rows, max_new_tokens=5))
    found = by_unit(leave_one_out(ablation, kind, "accuracy"), SCORED_AS[kind], "accuracy")
    whole = accuracy(checkpoint.model)
    # A layer cannot be taken out of a list where the cache counts layers.
    by_hand = {
        unit: whole - accuracy(without(checkpoint, [(kind, *unit)], delete_layers=False))
        for unit in UNITS[kind]
    }
    assert found == pytest.approx(by_hand)
    if kind != "heads":
        shape = checkpoint.shape
        really = {
            unit: whole
            - accuracy(cut_model(checkpoint.model, KeptUnits.whole(shape).without(shape, [(kind, *unit)])))
            for unit in UNITS[kind]
        }
        assert found == pytest.approx(really)
    assert len(set(found.values())) > 1
    assert {type(score) for score in found.values()} == {float}
