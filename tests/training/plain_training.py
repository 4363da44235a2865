"""What tests of trainings share: weights, logs, and a plain loss by transformers' own."""

import json

import torch

from copra.data.sequences import IGNORED
from copra.training.loop import LOG


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def log_of(trainer) -> list[dict]:
    return [json.loads(line) for line in (trainer.state / LOG).read_text().splitlines()]


def plain_loss(model, samples) -> torch.Tensor:
    """Mean over all supervised positions, row by row, by transformers' own loss."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        n = sum(label != IGNORED for label in sample.labels)
        output = model(input_ids=torch.tensor([sample.tokens]), labels=torch.tensor([sample.labels]))
        total, count = total + output.loss * n, count + n
    return total / count


def validation_samples(trainer):
    return [trainer.stage.lay_out(row, trainer.markers) for row in trainer.validation]


@torch.no_grad()
def validation_loss(trainer) -> float:
    trainer.model.eval()
    return plain_loss(trainer.model, validation_samples(trainer)).item()
