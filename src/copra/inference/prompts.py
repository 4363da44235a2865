"""What a model is given to answer a question: its prompt, and where its text ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from copra.errors import CopraError
from copra.inference.decode import Ends
from copra.models.tokens import beginning, tokenise
from copra.reasoning.layout import Decoding, Prompting
from copra.tasks.task import Row


@dataclass(frozen=True)
class Prompts:
    """Token ids: what stands before every prompt, each row's prompt after it, and where a text ends."""

    prefix: list[int]
    prompts: list[list[int]]
    ends: Ends | None


def prompts_of(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], decoding: Decoding | None) -> Prompts:
    """The prompts of rows: question and line break, or worked examples and the question in their form.

    Raises:
        CopraError: the tokenizer reads examples and question together otherwise than apart.
    """
    if decoding is None or decoding.prompting is None:
        return Prompts([], [row.question for row in tokenise(tokenizer, rows)], None)
    prompting = decoding.prompting
    questions = [prompting.question.replace("{question}", row.question) for row in rows]
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    (examples,) = encode([prompting.exemplars])
    prompts = encode(questions) if questions else []
    for question, prompt in list(zip(questions, prompts, strict=True))[:10]:
        (whole,) = encode([prompting.exemplars + question])
        if whole != examples + prompt:
            raise CopraError(
                "few_shot: the tokenizer reads the examples and the question together otherwise than apart, "
                "so the examples cannot be read once for all. Let 'separator' end in a line break."
            )
    return Prompts(
        beginning(tokenizer) + examples, prompts, lambda tokens: _end(tokenizer, tokens, prompting)
    )


def until_stop(text: str, prompting: Prompting) -> str:
    """A generated text up to the first of its stops."""
    for stop in prompting.stops:
        text = text.partition(stop)[0]
    return text


def _end(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], prompting: Prompting) -> int | None:
    """How many tokens there are up to and with the first stop, or None."""

    def stopped(number: int) -> bool:
        text = tokenizer.decode(tokens[:number])
        return any(stop in text for stop in prompting.stops)

    if not stopped(len(tokens)):
        return None
    return next(number for number in range(1, len(tokens) + 1) if stopped(number))
