"""The calibration set: the rows that units are scored on, laid out for an objective."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from copra.data.batch import Batch, collate
from copra.data.sequences import IGNORED, GenerationSpec, Sample, TokenRow, lay_out
from copra.data.tokenization import pad_id, tokenize
from copra.schema.scoring import Objective
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import digest


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    objective: Objective,
    batch_size: int,
    decoding: GenerationSpec | None,
) -> Iterator[Batch]:
    """Yield the rows in batches, in their order.

    "cot" and "answer" read question, steps and answer, with labels on steps and answer or on the answer
    alone. "latent" reads the node's own sequence by its `decoding`: question, markers, latents and answer,
    with labels on the answer (if `decoding` is None, as for a base: question and answer). Batches of text
    passages come from `copra.pruning.scoring.text`.

    Raises:
        CopraError: the objective is "latent" and the node's decoding has no such sequence.
    """
    if objective == "latent":
        _check_latent(decoding)
    samples = [_sample(row, objective, decoding) for row in tokenize(tokenizer, rows)]
    for first in range(0, len(samples), batch_size):
        yield collate(samples[first : first + batch_size], pad_id(tokenizer))


def calibration_name(rows: Sequence[Row], objective: Objective, decoding: GenerationSpec | None) -> str:
    """Return 16 hexadecimal digits that name the calibration set.

    They are a digest of its rows in order, the objective and, with objective "latent", the node's decoding.
    """
    read: list[Any] = [objective, [[row.question, list(row.steps), row.answer] for row in rows]]
    if objective == "latent":
        read.append(None if decoding is None else decoding.to_json())
    return digest(read)[:16]


def text_batch(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return question, steps and answer of all rows as one batch: input_ids and attention_mask [B, T]."""
    batch = next(calibration_batches(tokenizer, rows, "cot", len(rows), None))
    return batch.tokens, batch.mask


def _sample(row: TokenRow, objective: Objective, decoding: GenerationSpec | None) -> Sample:
    if objective == "cot":
        return lay_out(row, skip=0, latents=0, markers=None)
    before: tuple[int, ...] = ()
    latents: list[int] = []
    after: list[int] = []
    if objective == "answer":
        after = [token for step in row.steps for token in step]
    elif decoding is not None:
        before, after = decoding.prefix_ids, list(decoding.suffix_ids)
        latents = [decoding.latent_token] * decoding.latents
    prefix = [*row.question, *before]
    given = [*prefix, *latents, *after]
    return Sample(
        id=row.id,
        tokens=given + row.answer,
        labels=[IGNORED] * len(given) + row.answer,
        first_latent=len(prefix),
        n_latents=len(latents),
    )


def _check_latent(decoding: GenerationSpec | None) -> None:
    """Check that a node answers in one sequence that reads each latent once.

    Raises:
        CopraError: it does not.
    """
    if decoding is None:
        return
    if decoding.prompting is not None:
        way, instead = "is asked after worked examples (few_shot) and has no latents", "'cot'"
    elif decoding.emulated:
        way, instead = "has a thought emulator (icot_kd) in the place of latents", "'answer' or 'cot'"
    elif decoding.jacobi_iterations:
        way, instead = "reads all latents at once, several times over (iterations)", "'answer' or 'cot'"
    else:
        return
    raise CopraError(
        f"objective: 'latent' needs a model that reads its latents one after another, and this one {way}. "
        f"Take the objective {instead} for it."
    )
