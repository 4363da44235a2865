"""The text that units are scored on."""

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from copra.files import digest
from copra.models.tokens import pad_id, tokenise
from copra.reasoning.forward import collate
from copra.reasoning.layout import IGNORED, Sample, TokenRow, lay_out
from copra.tasks.task import Row

Objective = Literal["answer", "cot"]


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], objective: Objective, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Question, steps and answer of each row, padded on the right: input_ids, attention_mask, labels [B, T].

    Labels are set on steps and answer ("cot"), or on the answer alone given the steps ("answer").
    """
    samples = [_sample(row, objective) for row in tokenise(tokenizer, rows)]
    for first in range(0, len(samples), batch_size):
        batch = collate(samples[first : first + batch_size], pad_id(tokenizer))
        yield {"input_ids": batch.tokens, "attention_mask": batch.mask, "labels": batch.labels}


def calibration_name(rows: Sequence[Row], objective: Objective) -> str:
    """16 hexadecimal digits that name the calibration set: its rows in order, and the objective."""
    return digest([objective, [[row.question, list(row.steps), row.answer] for row in rows]])[:16]


def text_batch(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """All rows in one batch: input_ids and attention_mask [B, T]."""
    batch = next(calibration_batches(tokenizer, rows, "cot", len(rows)))
    return batch["input_ids"], batch["attention_mask"]


def _sample(row: TokenRow, objective: Objective) -> Sample:
    sample = lay_out(row, skip=0, latents=0, markers=None)
    if objective == "cot":
        return sample
    labels = [IGNORED] * (len(sample.tokens) - len(row.answer)) + row.answer
    return Sample(sample.id, sample.tokens, labels, sample.first_latent, 0)
