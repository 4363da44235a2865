"""Tiny checkpoints that think, by what is fed at their latents."""

from dataclasses import replace

import torch

from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.schema.loop import Loop
from helpers.decodings import DECODINGS
from helpers.manifests import provenance

LOOPED = {
    "looped": GenerationSpec((), 0, "hidden", 48, (), loop=Loop(times=3)),
    "looped hidden": replace(DECODINGS["hidden"], loop=Loop(layers=(1, 2), times=2)),
}
SPECS = {**DECODINGS, **LOOPED}


def made(make_model, tokenizer, folder, kind, spec):
    """Save a tiny model that answers by a spec, with large networks, and return it as a checkpoint."""
    model = make_model(kind, double=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    wanted = {name: {} for name in spec.extra_modules} if spec else {}
    torch.manual_seed(3)
    networks = make_extra_modules(model, wanted)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter *= 4
    save_checkpoint(folder, model, tokenizer, provenance(decoding=spec), None, networks, wanted)
    return load_checkpoint(folder)
