"""Answer questions with a checkpoint, and compare with the gold answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas

from copra.cost.flops import PARTS, PHASES, FlopCounter
from copra.errors import CopraError
from copra.evaluation.answers import extract_answer, same_answer
from copra.inference.decode import Answer, decode
from copra.models.tokens import ANSWER, pad_id, tokenise
from copra.reasoning.layout import Decoding, TokenRow
from copra.tasks.task import Row

if TYPE_CHECKING:
    from copra.models.checkpoint import Checkpoint


def predictions(
    checkpoint: "Checkpoint",
    decoding: Decoding,
    rows: Sequence[Row],
    max_new_tokens: int,
    answers: Literal["number", "text"],
    batch_size: int = 128,
) -> pandas.DataFrame:
    """A row a question: what was generated, whether it is right, its token counts and its FLOPs.

    Raises:
        CopraError: the longest question leaves too few positions for `max_new_tokens`.
    """
    tokenizer = checkpoint.tokenizer
    token_rows = tokenise(tokenizer, rows)
    _check_length(checkpoint, decoding, token_rows, max_new_tokens)
    decoded = decode(
        checkpoint.model,
        [row.question for row in token_rows],
        decoding,
        stop=tokenizer.eos_token_id,
        pad=pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    texts = tokenizer.batch_decode([answer.tokens for answer in decoded], skip_special_tokens=True)
    mark = tokenizer(ANSWER, add_special_tokens=False)["input_ids"][0]
    counter = FlopCounter(checkpoint.shape)
    table = []
    for row, tokens, answer, text in zip(rows, token_rows, decoded, texts, strict=True):
        extracted = extract_answer(text)
        table.append(
            {
                "id": row.id,
                "question": row.question,
                "gold": row.answer,
                "generated": text,
                "extracted": extracted,
                "correct": same_answer(extracted, row.answer, answers),
                **_counts(tokens, answer, decoding, mark),
                **_flops(counter, tokens, answer, decoding),
            }
        )
    return pandas.DataFrame(table)


def share_correct(
    checkpoint: "Checkpoint",
    decoding: Decoding,
    rows: Sequence[Row],
    max_new_tokens: int,
    answers: Literal["number", "text"],
) -> float:
    """Accuracy alone, for choices made on the validation split."""
    return float(predictions(checkpoint, decoding, rows, max_new_tokens, answers)["correct"].mean())


def _check_length(
    checkpoint: "Checkpoint", decoding: Decoding, rows: Sequence[TokenRow], max_new_tokens: int
) -> None:
    """Refuse answers that may become longer than the model has positions for."""
    context = checkpoint.model.config.max_position_embeddings
    longest = max(rows, key=lambda row: len(row.question))
    thought = len(decoding.before) + decoding.latents + len(decoding.after)
    # The last generated token is not fed back.
    room = context - len(longest.question) - thought + 1
    if max_new_tokens > room:
        raise CopraError(
            f"row {longest.id}: its question has {len(longest.question)} tokens and the model {context} "
            f"positions, which leaves {max(room, 0)} for the answer: set evaluation.max_new_tokens, now "
            f"{max_new_tokens}, to that or less, or give the base more context."
        )


def _counts(tokens: TokenRow, answer: Answer, decoding: Decoding, mark: int) -> dict[str, Any]:
    """Token counts of one answer. The chain ends where the last answer mark begins."""
    generated = len(answer.tokens)
    marked = mark in answer.tokens
    chain = generated - 1 - answer.tokens[::-1].index(mark) if marked else generated
    return {
        "n_prompt": len(tokens.question),
        "n_latent": decoding.latents,
        "n_marker": len(decoding.before) + len(decoding.after),
        "n_chain": chain,
        "n_answer": generated - chain,
        "n_generated": generated,
        "hit_length_limit": answer.hit_length_limit,
    }


def _flops(counter: FlopCounter, tokens: TokenRow, answer: Answer, decoding: Decoding) -> dict[str, int]:
    flops = counter.of_answer(decoding, len(tokens.question), len(answer.tokens))
    names = (*(phase for phase in PHASES), *PARTS)
    return {"depth": flops.depth, "flops": flops.total, **{f"flops_{name}": flops.of(name) for name in names}}
