"""The causal test of latents: answers with the latent inputs of another source than the model itself.

What is replaced are the embeddings at the latent positions, after their conversion by `latent_input`. These
positions still attend to the question, as those of pause tokens do, so only what the inputs themselves carry
is lost: the accuracy of `own` minus that of `other`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pandas
from torch import Tensor, float64

from copra.evaluation.accuracy import accuracy_of, predictions
from copra.generation.decode import GetOrGenerate
from copra.generation.latent_inputs import latent_inputs
from copra.generation.prompts import prompts_of
from copra.models.checkpoint import Checkpoint
from copra.schema.latents import LatentSource
from copra.tasks.answers import AnswerKind, answer_value, same_answer
from copra.tasks.draws import shuffled
from copra.tasks.task import Row
from copra.utils.errors import CopraError

SEED = 0


def other_questions(golds: Sequence[str], kind: AnswerKind) -> list[int]:
    """Return for each question the index of another one, and each index exactly once.

    The gold answers of the two differ, for as many questions as possible: for all if no answer is that of
    more than half of them. Questions are shuffled with a fixed seed and then sorted by the frequency of their
    answer, equal answers side by side. Each gets the question that comes m places later, from the end on to
    the beginning, where m is the number of questions with the most frequent answer (1 if that is all).

    Raises:
        CopraError: there is only one question.
    """
    n = len(golds)
    if n < 2:
        raise CopraError(
            f"evaluation.latents_from: 'other' takes the latents of another question, and only {n} is "
            "evaluated. Evaluate more questions, or leave 'other' out."
        )
    values = [answer_value(gold, kind) for gold in golds]
    order = shuffled(Random(SEED), range(n))
    counts = Counter(values[i] for i in order).most_common()
    rank = {value: number for number, (value, _) in enumerate(counts)}
    order.sort(key=lambda i: rank[values[i]])
    most = counts[0][1] % n or 1
    return [other for _, other in sorted(zip(order, order[most:] + order[:most], strict=True))]


def replaced(own: Tensor, source: LatentSource, others: Sequence[int]) -> Tensor:
    """Return the inputs [N, n, d] of a source, given those of each question's own latents.

    `others` are the indices of the questions whose inputs `other` takes.
    """
    match source:
        case "other":
            return own[list(others)]
        case "mean":
            return own.mean(dim=0, dtype=float64).to(own.dtype).expand_as(own)
        case "zeros":
            return own.new_zeros(1).expand_as(own)
    raise ValueError(f"{source}: its inputs are the model's own")


def answers_by_source(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    sources: Sequence[LatentSource],
    *,
    max_new_tokens: int,
    answers: AnswerKind,
    batch_size: int,
    answer_cache: GetOrGenerate,
) -> dict[LatentSource, pandas.DataFrame]:
    """Return the predictions (`copra.evaluation.accuracy`) of a checkpoint for each source of its latents.

    The checkpoint must have recurrent latents. Predictions for `other` have a column `other_gold`, the gold
    answer of the question whose latents were fed. Several processes share the questions.

    Raises:
        CopraError: `other` is a source and there is only one question, or the longest question leaves too few
            positions for `max_new_tokens`.
    """
    spec = checkpoint.decoding
    assert spec is not None
    others = other_questions([row.answer for row in rows], answers) if "other" in sources else []
    own: Tensor | None = None
    found: dict[LatentSource, pandas.DataFrame] = {}
    for source in sources:
        decoding, latents = spec, None
        if source == "drop_last":
            decoding = replace(spec, latents=spec.latents - 1)
        elif source != "own":
            if own is None:
                asked = prompts_of(checkpoint.tokenizer, rows, spec)
                own = latent_inputs(checkpoint, asked, spec, batch_size)
            latents = replaced(own, source, others)
        found[source] = predictions(
            checkpoint, decoding, rows, max_new_tokens, answers, batch_size, answer_cache, latents=latents
        )
    if others:
        found["other"] = found["other"].assign(other_gold=[rows[i].answer for i in others])
    return found


def summary(
    source: LatentSource, found: Mapping[LatentSource, pandas.DataFrame], kind: AnswerKind
) -> dict[str, Any]:
    """Return the accuracy of a source and its differences from `own`, given the predictions by source.

    `changed` is the number of answers that differ from those of `own`. `n_other` is the number of questions
    that got the latents of a question with another gold answer, `other_gold` the share of these questions
    that were answered with that gold answer (None for other sources, and if there is no such question).
    `is_correct` lists for each question if it was answered right.
    """
    table = found[source]
    given, own = _extracted(table), _extracted(found["own"])
    value: dict[str, Any] = accuracy_of(table) | {"n_other": None, "other_gold": None}
    value["changed"] = sum(not _same(*pair, kind) for pair in zip(given, own, strict=True))
    if source == "other":
        triples = zip(given, table["gold"], table["other_gold"], strict=True)
        hits = [
            same_answer(said, other, kind) for said, gold, other in triples if not _same(gold, other, kind)
        ]
        value |= {"n_other": len(hits), "other_gold": sum(hits) / len(hits) if hits else None}
    return value | {"is_correct": table["correct"].tolist()}


def _extracted(table: pandas.DataFrame) -> list[str | None]:
    """Return the answers found in the generated texts, None if there is none."""
    return [None if pandas.isna(answer) else answer for answer in table["extracted"]]


def _same(answer: str | None, other: str | None, kind: AnswerKind) -> bool:
    """True if two answers are equal, as texts or as `kind`; two missing answers are."""
    return answer == other or (other is not None and same_answer(answer, other, kind))
