"""copra logit-lens: the likeliest tokens of each latent of a few questions, through the LM head."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Literal

import pandas

from copra.commands.answering import add_answering, load_to_answer
from copra.commands.common import Coded, rows_of, settings_of
from copra.evaluation.accuracy import check_length
from copra.generation.answering import GenerationOptions
from copra.generation.logit_lens import logit_lens
from copra.generation.prompts import prompts_of
from copra.schema.settings import Precision
from copra.utils.errors import CopraError
from copra.utils.files import write_parquet


class LogitLensSettings(Coded):
    node: str
    """Name of the model node."""
    questions: int
    """Number of questions, from the start of the split."""
    split: Literal["valid", "test"] = "test"
    """Split whose questions are answered."""
    max_new_tokens: int = 256
    """Maximum number of generated tokens per answer."""
    batch_size: int = 128
    """Number of questions decoded together."""
    precision: Precision = "float32"
    """Precision of the computation, if the device supports it."""


def arguments(parser: ArgumentParser) -> None:
    add_answering(parser, "checkpoint that answers with recurrent latents")
    parser.add_argument("--output", type=Path, required=True, help="Parquet table, one row per token")


def run(options: Namespace) -> None:
    settings = settings_of(options, LogitLensSettings)
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split)
    tokenizer, decoding = checkpoint.tokenizer, checkpoint.decoding
    if decoding is None or not decoding.has_recurrent_latents:
        raise CopraError(
            f"{options.model}: this model has no latents that are hidden states, so none to look at."
        )
    rows = rows_of(options.data, settings.split, settings.questions)
    asked = prompts_of(tokenizer, rows, decoding)
    check_length(checkpoint, decoding, rows, asked, settings.max_new_tokens)
    limits = GenerationOptions(settings.max_new_tokens, settings.batch_size)
    readouts = logit_lens(checkpoint, asked.prompts, decoding, limits)
    table = [
        {
            "node": settings.node,
            "id": row.id,
            "question": row.question,
            "steps": list(row.steps),
            "gold": row.answer,
            "precision": checkpoint.precision,
            "generated": tokenizer.decode(one.answer.tokens, skip_special_tokens=True),
            "latent": latent,
            "rank": rank,
            "token": tokenizer.decode([token]),
            "probability": probability,
        }
        for row, one in zip(rows, readouts, strict=True)
        for latent, likely in enumerate(zip(one.tokens, one.probabilities, strict=True))
        for rank, (token, probability) in enumerate(zip(*likely, strict=True))
    ]
    write_parquet(options.output, pandas.DataFrame(table), origin)
