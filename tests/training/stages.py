"""Running copra train in a folder made by the fixture `place`, and looking at what it made."""

import json
from argparse import ArgumentParser

import torch

from copra.commands import train
from copra.methods import METHODS
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.training import loop
from copra.utils.files import MANIFEST


def train_stage(place, parent: str, output: str, *arguments, **options):
    """Train by `copra train`; returns the checkpoint. Arguments and options are those of `words`."""
    parser = ArgumentParser()
    train.arguments(parser)
    train.run(parser.parse_args(words(place, parent, output, *arguments, **options)))
    return load_checkpoint(place / output)


def words(
    place,
    parent: str,
    output: str,
    kind: str = "cot",
    stage: int = 0,
    *,
    method=(),
    teacher=None,
    pretrained=None,
    **training,
) -> list[str]:
    """What `copra train` is asked in these tests."""
    method = {
        "kind": kind,
        "training": {"steps": 1},
        **({"max_latent_stage": 1} if kind == "coconut" else {}),
        **dict(method),
    }
    usual = {"learning_rate": 3e-3, "steps": 4, "batch_size": 8, "num_validations": 2}
    settings = {
        "node": f"tiny@0+{output}",
        "method": kind,
        "stage": METHODS[kind].model_validate(method).resolved_stages()[stage].canonical(),
        "training": {**usual, **training},
        "seed": 3,
        "max_new_tokens": 8,
    }
    words = ["--settings", json.dumps(settings), "--save-every", "-1"]
    for name, value in {"parent": parent, "data": "data", "state": "state", "output": output}.items():
        words += [f"--{name}", str(place / value)]
    for name, model in {"teacher": teacher, "pretrained": pretrained}.items():
        if model is not None:
            words += [f"--{name}", str(place / model / MANIFEST)]
    return words


def same_extra_modules(first, second, name: str) -> bool:
    first, second = (checkpoint.extra_modules[name].state_dict() for checkpoint in (first, second))
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def drop_a_layer(place, parent: str, output: str):
    """The checkpoint without its last layer."""
    checkpoint = load_checkpoint(place / parent)
    del checkpoint.model.model.layers[-1:]
    checkpoint.model.config.num_hidden_layers -= 1
    save_checkpoint(place / output, checkpoint.model, checkpoint.tokenizer, checkpoint.manifest)
    return load_checkpoint(place / output)


def log_of(place, output: str) -> list[dict]:
    return [json.loads(line) for line in (place / output / loop.LOG).read_text().splitlines()]
