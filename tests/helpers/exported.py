"""Checkpoints to write for other programs, and their answers there beside copra's own."""

from dataclasses import replace
from pathlib import Path

import torch

from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.generation.answering import GenerationOptions, generate
from copra.generation.exported import ExportedModel
from copra.generation.prompts import prompts_of
from copra.models.bases import make_base
from copra.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from copra.pruning.cut import KeptUnits
from copra.pruning.surgery import cut_model
from copra.schema.base import Base, FromScratch
from copra.schema.loop import Loop
from copra.tasks.task import Row
from helpers.manifests import provenance

SIZES = {"hidden_size": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 96}
QUESTIONS = ("2 and 3 ?", "5 and 1 and 4 and 2 ?")
# Layers of unequal sizes: one without a KV group, one with fewer neurons.
UNEQUAL = KeptUnits((0, 1, 2), (None, (0, 1), None), (None, None, tuple(range(32))))
FEWER = KeptUnits((0, 2), (None, None, None), (None, None, None))


def make_checkpoint(folder: Path, rows: list[Row], spec=None, *, cut: KeptUnits | None = None, **sizes):
    """A checkpoint with large random weights, of a decoding and with a cut, saved in a folder."""
    base = Base(from_scratch=FromScratch(**{**SIZES, "tokenizer": "bpe", **sizes}))
    model, tokenizer = make_base(base, rows, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape)
    if cut is not None:
        model = cut_model(model, cut)
    spec = None if spec is None else spec(tokenizer)
    save_checkpoint(folder, model, tokenizer, provenance("llama@0+x", decoding=spec, lineage=[{"step": "x"}]))
    return load_checkpoint(folder)


def plain(tokenizer):
    return GenerationSpec((), 0, "hidden", 0, ())


def looped(tokenizer):
    return replace(plain(tokenizer), loop=Loop(layers="all", times=2))


def latents(number, feed="raw", thought="hidden", **more):
    """A spec with latents between the markers of a tokenizer."""

    def spec(tokenizer):
        marks = markers_of(tokenizer)
        return GenerationSpec((marks.start,), number, thought, marks.latent, (marks.end,), feed, **more)

    return spec


def assert_same_tokens(
    checkpoint: Checkpoint, model: ExportedModel, questions: tuple[str, ...], longest: int
) -> None:
    """Both write the same tokens, from a question's tokens and from its text."""
    rows = [Row(question, (), "") for question in questions]
    asked = prompts_of(checkpoint.tokenizer, rows, checkpoint.decoding)
    answers = generate(checkpoint, asked, checkpoint.decoding, GenerationOptions(longest, 2))
    for question, prompt, answer in zip(questions, asked.prompts, answers, strict=True):
        tokens = [token for token in answer.tokens if token != checkpoint.tokenizer.eos_token_id]
        assert model.generate(prompt, longest) == tokens
        assert model.answer(question, longest) == checkpoint.tokenizer.decode(
            tokens, skip_special_tokens=True
        )
        # Once more: nothing is left of the last answer.
        assert model.generate(prompt, longest) == tokens
