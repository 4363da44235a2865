"""Tiny checkpoints that think in latents, with random weights that are large enough to say something."""

import torch

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of


def make_thinker(base, latents: int) -> GenerationSpec:
    """Make the weights of a base (`word_base`) large, in place; return the spec of so many hidden latents."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    marks = markers_of(base.tokenizer)
    return GenerationSpec((marks.start,), latents, "hidden", marks.latent, (marks.end,))
