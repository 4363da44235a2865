"""The loss that units are scored by."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import IGNORED, GenerationSpec
from copra.methods.hidden_states import hidden_states
from copra.models.logits import read_logits
from copra.utils.errors import CopraError


def example_losses(
    model: PreTrainedModel, extra_modules: nn.ModuleDict, batch: Batch, decoding: GenerationSpec | None
) -> Tensor:
    """Return the mean cross-entropy over each example's own supervised positions, [B], at least in float32.

    Latents are computed as in the node's `decoding`, with its extra modules; a batch without latents needs
    neither. Logits are computed at supervised positions only.

    Raises:
        CopraError: an example has no supervised position.
    """
    supervised = batch.labels[:, 1:] != IGNORED
    counts = supervised.sum(1)
    if not counts.all():
        raise CopraError(
            f"scores: example {batch.ids[int(counts.argmin())]} of the calibration set has no supervised "
            "position, so it has no loss. Leave it out, or allow longer sequences if its answer was cut off."
        )
    hidden = hidden_states(
        model,
        batch,
        "embedding" if decoding is None else decoding.thought,
        "raw" if decoding is None else decoding.latent_input,
        projection=extra_modules["projection"] if "projection" in extra_modules else None,  # noqa: SIM401
    )
    logits = read_logits(model, hidden[:, :-1][supervised])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = batch.labels[:, 1:][supervised]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    sums = losses.new_zeros(len(batch)).index_add(0, supervised.nonzero()[:, 0], losses)
    return sums / counts
