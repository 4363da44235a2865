"""What a model is given to answer a question: its prompt, and where its text ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import beginning, tokenize
from copra.generation.decode import Ends
from copra.tasks.task import Row


@dataclass(frozen=True)
class Prompts:
    """Token ids: what stands before every prompt, each row's prompt after it, and where a text ends."""

    prefix: list[int]
    prompts: list[list[int]]
    ends: Ends | None


def prompts_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], decoding: GenerationSpec | None
) -> Prompts:
    """The prompts of rows: question and line break, or worked examples and the question in their form.

    The prefix is what all prompts with the examples begin with. At the seam to the question a tokenizer may
    read letters together or apart (GPT-2's reads two line breaks as one token, but not before a word).
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
    """A generated text up to the first of its stops."""
    for stop in prompting.stops:
        text = text.partition(stop)[0]
    return text


def _equal(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these begin with."""
    for number, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return number
    return min(map(len, sequences))


def _end(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], prompting: Prompting) -> int | None:
    """How many tokens there are up to and with the first stop, or None."""

    def stopped(number: int) -> bool:
        text = tokenizer.decode(tokens[:number])
        return any(stop in text for stop in prompting.stops)

    if not stopped(len(tokens)):
        return None
    return next(number for number in range(1, len(tokens) + 1) if stopped(number))
