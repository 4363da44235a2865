"""The loss against the plain one; latents fed in other ways are compared in test_passes.py."""

from dataclasses import replace

import pytest
import torch
from plain import loss

from copra.data.sequences import GenerationSpec, lay_out
from copra.data.tokenization import markers_of, tokenize
from copra.pruning.scoring.calibration import calibration_batches
from copra.pruning.scoring.objective import example_losses
from copra.utils.errors import CopraError


@pytest.mark.parametrize("thought", ["hidden", "embedding"])
def test_losses_equal_those_of_single_examples_without_cache(model, calibration, no_parts, thought):
    decoding = calibration.decoding and replace(calibration.decoding, thought=thought)
    model.eval()
    found = torch.cat([example_losses(model, no_parts, batch, decoding) for batch in calibration.batches(3)])
    expected = [loss(model, sample, decoding).item() for sample in calibration.samples]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_objective_latent_is_the_loss_of_coconuts_last_stage(word_base, rows, no_parts):
    """Its layout by the method's own file, its loss a step at a time."""
    base = word_base()
    model, markers = base.model.double().eval(), markers_of(base.tokenizer)
    decoding = GenerationSpec((markers.start,), 3, "hidden", markers.latent, (markers.end,))
    batch = next(calibration_batches(base.tokenizer, rows[:5], "latent", 5, decoding))
    found = example_losses(model, no_parts, batch, decoding)
    samples = [lay_out(row, None, 3, markers) for row in tokenize(base.tokenizer, rows[:5])]
    expected = [loss(model, sample, decoding).item() for sample in samples]
    # This model's norm rounds to float32.
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_an_example_without_labels_is_named(model, calibration, no_parts):
    batch = next(calibration.batches(5))
    batch.labels[2] = -100
    with pytest.raises(CopraError, match="example 2 "):
        example_losses(model, no_parts, batch, calibration.decoding)
