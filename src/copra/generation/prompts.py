"""Build the prompts of questions, and find the ends of answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import beginning, tokenize
from copra.generation.decode import Ends
from copra.tasks.task import Row


@dataclass(frozen=True)
class Prompts:
    """Token ids of the common prefix and of each row's prompt after it, and the function that finds ends."""

    prefix: Sequence[int]
    prompts: Sequence[Sequence[int]]
    ends: Ends | None


def prompts_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], decoding: GenerationSpec | None
) -> Prompts:
    """Return the prompts of rows: question and line break, or worked examples and the templated question.

    The prefix is the longest common prefix of the tokens of the examples and of all prompts. Where the
    question begins, a tokenizer may merge characters or not (GPT-2's merges two line breaks into one token,
    but not before a word).
    """
    if decoding is None or decoding.prompting is None:
        return Prompts([], [row.question for row in tokenize(tokenizer, rows)], None)
    prompting = decoding.prompting
    texts = [prompting.exemplars + prompting.question.replace("{question}", row.question) for row in rows]
    examples, *prompts = tokenizer([prompting.exemplars, *texts], add_special_tokens=False)["input_ids"]
    known = _equal([examples, *prompts])
    return Prompts(
        prefix=beginning(tokenizer) + examples[:known],
        prompts=[prompt[known:] for prompt in prompts],
        ends=lambda tokens: _end(tokenizer, tokens, prompting),
    )


def until_stop(text: str, prompting: Prompting) -> str:
    """Return a generated text up to the first stop."""
    for stop in prompting.stops:
        text = text.partition(stop)[0]
    return text


def _equal(sequences: Sequence[Sequence[int]]) -> int:
    """Return the length of the longest common prefix."""
    for number, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return number
    return min(map(len, sequences))


def _end(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], prompting: Prompting) -> int | None:
    """Return the number of tokens up to and including the first stop, or None if there is no stop."""

    def stopped(number: int) -> bool:
        text = tokenizer.decode(list(tokens[:number]))
        return any(stop in text for stop in prompting.stops)

    if not stopped(len(tokens)):
        return None
    return next(number for number in range(1, len(tokens) + 1) if stopped(number))
