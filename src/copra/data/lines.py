"""Split the tokens of a text at its line ends, even if a line's tokens depend on the text around it."""

from collections.abc import Callable, Sequence
from itertools import accumulate, chain

from transformers import PreTrainedTokenizerBase

from copra.utils.errors import CopraError

CHECKED = 100
"""Number of texts whose pieces are compared with the whole: a tokenizer that joins lines does so in most."""
BATCH = 1024
"""Number of texts tokenized at once with offsets, which take 20 times the memory of their tokens."""


def cut_at_lines(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], name: Callable[[int], str]
) -> list[list[list[int]]]:
    """Return the tokens of each piece of each text; together they are the tokens of the whole text.

    A piece is a line with its line break, or the last line. Most tokenizers tokenize a piece alone as within
    the text; then equal pieces are tokenized once. Those that put a space sign before every text (Llama 2,
    Mistral 7B) do not; then whole texts are tokenized and split by the offsets of their tokens. `name`
    returns the name of a text by its index, for errors.

    Raises:
        CopraError: a token spans the end of a line.
    """
    joined, whole = _pieces_and_wholes(tokenizer, texts[:CHECKED])
    if joined == whole:
        unique = list(dict.fromkeys(chain.from_iterable(texts)))
        known = dict(zip(unique, _tokens(tokenizer, unique), strict=True))
        return [[list(known[piece]) for piece in pieces] for pieces in texts]
    cut = []
    for first in range(0, len(texts), BATCH):
        cut += _cut_wholes(tokenizer, texts[first : first + BATCH], first, name)
    # The first line is a question, which is the whole prompt when the model answers.
    alone = _tokens(tokenizer, [pieces[0] for pieces in texts[:CHECKED]])
    for number, (question, parts) in enumerate(zip(alone, cut, strict=False)):
        if question != parts[0]:
            raise _problem(name(number), f"its first line alone is {_shown(tokenizer, question)}")
    return cut


def _pieces_and_wholes(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of each text: those of its pieces, concatenated, and those of the whole."""
    pieces = iter(_tokens(tokenizer, list(chain.from_iterable(texts))))
    joined = [list(chain.from_iterable(next(pieces) for _ in text)) for text in texts]
    return joined, _tokens(tokenizer, list(map("".join, texts)))


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _cut_wholes(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], first: int, name: Callable[[int], str]
) -> list[list[list[int]]]:
    """Tokenize whole texts and return the tokens of each piece, in which they start.

    `first` is the index of the first text.
    """
    if not tokenizer.is_fast:
        raise _problem(name(first), "it does not say where in the text a token stands")
    encoded = tokenizer(list(map("".join, texts)), add_special_tokens=False, return_offsets_mapping=True)
    cut = []
    tokenized = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for number, (pieces, tokens, offsets) in enumerate(tokenized, start=first):
        ends = list(accumulate(map(len, pieces)))
        parts: list[list[int]] = [[] for _ in pieces]
        piece = end = 0
        for token, (start, end) in zip(tokens, offsets, strict=True):
            while piece < len(pieces) - 1 and start >= ends[piece]:
                piece += 1
            begins_before = end > start and piece > 0 and start < ends[piece - 1]
            if begins_before or end > ends[piece]:
                raise _problem(name(number), f"{_shown(tokenizer, [token])} spans the end of a line")
            parts[piece].append(token)
        if end < ends[-1]:
            # The tokenizers library miscounts offsets after characters that it drops.
            raise _problem(name(number), f"the offsets of its tokens end at {end} of {ends[-1]} characters")
        cut.append(parts)
    return cut


def _shown(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return ", ".join(map(repr, tokenizer.convert_ids_to_tokens(tokens)))


def _problem(name: str, reason: str) -> CopraError:
    return CopraError(
        f"{name}: the tokenizer reads the text as a whole otherwise than line by line ({reason}), so its "
        "lines cannot be replaced by latents. Take a base whose tokenizer keeps lines apart."
    )
