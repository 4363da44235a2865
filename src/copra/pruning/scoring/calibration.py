"""The rows that units are scored on, laid out for an objective."""

from collections.abc import Iterator, Sequence

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
    """The rows in batches, in their order.

    "cot" and "answer" read question, steps and answer, with labels on steps and answer or on the answer
    alone. "latent" reads what the node itself reads, question, markers, latents and answer, as its
    `decoding` says, with labels on the answer (None, as of a base: question and answer). Passages of a
    text are no rows: `copra.pruning.scoring.text` makes their batches.

    Raises:
        CopraError: the objective is "latent" and the node's way to answer has no such sequence.
    """
    if objective == "latent":
        _check_latent(decoding)
    samples = [_sample(row, objective, decoding) for row in tokenize(tokenizer, rows)]
    for first in range(0, len(samples), batch_size):
        yield collate(samples[first : first + batch_size], pad_id(tokenizer))


def calibration_name(rows: Sequence[Row], objective: Objective, decoding: GenerationSpec | None) -> str:
    """16 hexadecimal digits that name the calibration set: its rows in order, the objective, and with
    objective "latent" how the node answers."""
    read = [objective, [[row.question, list(row.steps), row.answer] for row in rows]]
    if objective == "latent":
        read.append(None if decoding is None else decoding.to_json())
    return digest(read)[:16]


def text_batch(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Question, steps and answer of all rows in one batch: input_ids and attention_mask [B, T]."""
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
    """Refuse ways to answer that are not one sequence with latents that are read once each."""
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
