"""Answering questions with a checkpoint, and comparing with the gold answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas
from torch import Tensor

from copra.cost.flops import FLOP_GROUPS, PHASES, FlopCounter
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import ANSWER, first_token
from copra.evaluation import harness
from copra.evaluation.statistics import proportion
from copra.generation.answering import GenerationOptions, generate
from copra.generation.compiled import Compiled, positions
from copra.generation.decode import Answer, GetOrGenerate
from copra.generation.prompts import Prompts, prompts_of, until_stop
from copra.tasks.answers import AnswerKind, extract_answer, same_answer
from copra.tasks.task import Row
from copra.utils.errors import CopraError

if TYPE_CHECKING:
    from copra.models.checkpoint import Checkpoint

HARNESS: dict[str, harness.Filter] = {
    "harness-flexible": "flexible-extract",
    "harness-strict": "strict-match",
}
"""The filters of lm-evaluation-harness by the names of copra's answer rules."""


def predictions(
    checkpoint: "Checkpoint",
    decoding: GenerationSpec,
    rows: Sequence[Row],
    max_new_tokens: int,
    answers: AnswerKind,
    batch_size: int = 128,
    answer_cache: GetOrGenerate | None = None,
    compiled: Compiled | None = None,
    latents: Tensor | None = None,
) -> pandas.DataFrame:
    """Return one row per question: the generated text, its correctness, its token counts and its FLOPs.

    Several processes share the questions: each must call this, and each returns all rows. `answer_cache`
    answers each batch of questions only once. `compiled` is the checkpoint's model in compiled form, see
    `compiled_for`. `latents` [N, n, d] are embeddings to feed at the latent positions of each question in
    place of the model's own, whose FLOPs are counted all the same.

    Raises:
        CopraError: the longest question leaves too few positions for `max_new_tokens`.
    """
    tokenizer = checkpoint.tokenizer
    asked = prompts_of(tokenizer, rows, decoding)
    max_new_tokens = decoding.longest_answer(max_new_tokens)
    check_length(checkpoint, decoding, rows, asked, max_new_tokens)
    options = GenerationOptions(max_new_tokens, batch_size)
    decoded = generate(
        checkpoint,
        asked,
        decoding,
        options,
        answer_cache=answer_cache,
        compiled=compiled,
        latents=latents,
    )
    texts = tokenizer.batch_decode([answer.tokens for answer in decoded], skip_special_tokens=True)
    mark = first_token(tokenizer, ANSWER + "7")
    counter = FlopCounter(checkpoint.shape)
    table = []
    for row, prompt, answer, text in zip(rows, asked.prompts, decoded, texts, strict=True):
        extracted, correct = _judged(text, row.answer, decoding, answers)
        known = len(asked.prefix)
        table.append(
            {
                "id": row.id,
                "question": row.question,
                "gold": row.answer,
                "generated": text,
                "extracted": extracted,
                "correct": correct,
                **_counts(known + len(prompt), answer, decoding, mark),
                **_flops(counter, known + len(prompt), known, answer, decoding),
            }
        )
    return pandas.DataFrame(table)


def compiled_for(
    checkpoint: "Checkpoint",
    decoding: GenerationSpec,
    rows: Sequence[Row],
    max_new_tokens: int,
    batch_size: int,
) -> Compiled:
    """Return a checkpoint's model, compiled to answer the questions of these rows."""
    asked = prompts_of(checkpoint.tokenizer, rows, decoding)
    longest = decoding.longest_answer(max_new_tokens)
    length = positions(asked.prompts, decoding, asked.prefix, longest)
    return Compiled(checkpoint.model, min(batch_size, len(rows)), length)


def accuracy_of(table: pandas.DataFrame) -> dict[str, int | float]:
    """Return n, correct, accuracy and its 95% Wilson interval (low, high) of a table of predictions."""
    return proportion(int(table["correct"].sum()), len(table))


def share_correct(
    checkpoint: "Checkpoint",
    decoding: GenerationSpec,
    rows: Sequence[Row],
    max_new_tokens: int,
    answers: AnswerKind,
) -> float:
    """Return the accuracy alone, for choices on the validation split; all processes call it together."""
    return float(predictions(checkpoint, decoding, rows, max_new_tokens, answers)["correct"].mean())


def _judged(text: str, gold: str, decoding: GenerationSpec, answers: AnswerKind) -> tuple[str | None, bool]:
    """Return the answer found in a generated text (None if there is none), and True if it is right."""
    found = extracted(text, decoding, answers)
    if decoding.answer_rule in HARNESS:
        return found, harness.is_match(found, gold)
    return found, same_answer(found, gold, answers)


def extracted(text: str, decoding: GenerationSpec, answers: AnswerKind = "number") -> str | None:
    """Return the answer in a generated text by the checkpoint's rule; None if there is none."""
    if decoding.prompting is None:
        return extract_answer(text)
    text, rule = until_stop(text, decoding.prompting), decoding.prompting.answer
    if rule == "flexible" or rule == "strict":
        return extract_answer(text, rule, answers)
    return harness.extract(text, HARNESS[rule])


def check_length(
    checkpoint: "Checkpoint",
    decoding: GenerationSpec,
    rows: Sequence[Row],
    asked: Prompts,
    max_new_tokens: int,
) -> None:
    """Check that the model has positions for the longest question and its answer.

    Raises:
        CopraError: the longest question leaves too few positions for `max_new_tokens`.
    """
    room = room_for_answers(checkpoint, decoding, asked)
    if max_new_tokens > room:
        context = checkpoint.model.config.max_position_embeddings
        tokens, row = max(zip(map(len, asked.prompts), rows, strict=True), key=lambda pair: pair[0])
        thought = decoding.added_tokens
        examples = f" and its examples {len(asked.prefix)}" if asked.prefix else ""
        thinking = f", its latents and markers are {thought}," if thought else ""
        own = decoding.longest_answer(0) > 0
        key = "'max_new_tokens' of its few_shot step" if own else "evaluation.max_new_tokens"
        raise CopraError(
            f"row {row.id}: its question has {tokens} tokens{examples}{thinking} and the model {context} "
            f"positions, which leaves {max(room, 0)} for the answer: set {key}, now "
            f"{max_new_tokens}, to that or less, or give the base more context."
        )


def room_for_answers(checkpoint: "Checkpoint", decoding: GenerationSpec, asked: Prompts) -> int:
    """Return the number of tokens that fit after the longest prompt; it may be negative."""
    longest = len(asked.prefix) + max(map(len, asked.prompts)) + decoding.added_tokens
    # The last generated token is not fed back.
    return checkpoint.model.config.max_position_embeddings - longest + 1


def _counts(prompt: int, answer: Answer, decoding: GenerationSpec, mark: int | None) -> dict[str, Any]:
    """Return the token counts of one answer. The chain ends where the last answer mark begins."""
    generated = len(answer.tokens)
    chain = generated
    if mark is not None and mark in answer.tokens:
        chain = generated - 1 - answer.tokens[::-1].index(mark)
    return {
        "n_prompt": prompt,
        "n_latent": decoding.latents,
        "n_marker": decoding.added_tokens - decoding.latents,
        "n_chain": chain,
        "n_answer": generated - chain,
        "n_generated": generated,
        "hit_length_limit": answer.hit_length_limit,
    }


def _flops(
    counter: FlopCounter, prompt: int, known: int, answer: Answer, decoding: GenerationSpec
) -> dict[str, float]:
    """Return the FLOPs and the depth of one answer.

    The first `known` tokens of the prompt are common to all questions.
    """
    flops = counter.of_answer(decoding, prompt, len(answer.tokens))
    cached = counter.of_answer(decoding, prompt, len(answer.tokens), known).total if known else flops.total
    return {
        "depth": flops.depth,
        "flops": flops.total,
        "flops_cached_prompt": cached,
        **{f"flops_{name}": flops.of(name) for name in (*PHASES, *FLOP_GROUPS)},
    }
