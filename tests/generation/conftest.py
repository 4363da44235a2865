"""What tests of decoding share: prompts of unlike lengths, and extra modules for any way to answer."""

import pytest
import torch

from helpers.decodings import LENGTHS


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(1, 47, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture
def extra_modules(any_model):
    from copra.models.extra_modules import make_extra_modules

    torch.manual_seed(5)
    made = make_extra_modules(any_model, {"projection": {}, "mind_reader": {}, "emulator": {}})
    with torch.no_grad():
        for parameter in made["mind_reader"].parameters():
            parameter *= 8  # what it says must count beside the model's large states
    return made
