"""Train tokenizers on a task, find the latent markers, and tokenize rows."""

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from copra.data.lines import cut_at_lines
from copra.data.sequences import Markers, TokenRow
from copra.schema.base import FromScratch
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.problems import shown

MARKERS = ("<|start-latent|>", "<|latent|>", "<|end-latent|>")
PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
ANSWER = "### "


def train_tokenizer(spec: FromScratch, rows: Iterable[Row]) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the text of `rows`.

    "words": a token is a word, an integer, a sign or a line break; other white space is dropped.
    "bpe": byte-level BPE with one token per digit, as in Llama and others.
    """
    special = [PAD, END, UNKNOWN]
    trainer: trainers.Trainer
    if spec.tokenizer == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        pieces = Regex(r"\n|\d+|[^\W\d_]+|#+|<<|>>|[^\w\s]|_")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
        trainer = trainers.WordLevelTrainer(vocab_size=spec.vocabulary, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex("\n"), behavior="isolated"),
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(
        (
            "".join([row.question + "\n", *(step + "\n" for step in row.steps), ANSWER + row.answer])
            for row in rows
        ),
        trainer,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN if spec.tokenizer == "words" else None,
        model_max_length=spec.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def markers_of(tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Return the ids of the latent markers, which every copra checkpoint has.

    Raises:
        CopraError: the tokenizer has no markers.
    """
    ids = tokenizer.convert_tokens_to_ids(list(MARKERS))
    assert isinstance(ids, list)  # as those of a list
    if any(token_id is None or token_id == tokenizer.unk_token_id for token_id in ids):
        raise CopraError(f"the tokenizer has no marker tokens {', '.join(MARKERS)}: it is not copra's.")
    return Markers(*ids)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, or of the end token if there is none: padding is masked."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[TokenRow]:
    """Return tokenized rows: the tokens of the whole text, split at its line ends.

    Raises:
        CopraError: a token spans the end of a line, so that the tokens cannot be split at lines.
    """
    pieces = [
        [row.question + "\n", *(step + "\n" for step in row.steps), ANSWER + row.answer] for row in rows
    ]
    cut = cut_at_lines(tokenizer, pieces, lambda number: f"row {rows[number].id}")
    start, mark = beginning(tokenizer), mark_length(tokenizer)
    return [
        TokenRow(
            id=row.id,
            question=start + question,
            steps=steps,
            answer=[*answer, tokenizer.eos_token_id],
            mark=mark,
        )
        for row, (question, *steps, answer) in zip(rows, cut, strict=True)
    ]


def check_words(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], task: str) -> None:
    """Check that a tokenizer with a closed vocabulary has all words of the questions and answers of a task.

    Raises:
        CopraError: it lacks some; the message names the task and the first of them.
    """
    lacking: dict[str, str] = {}
    for row in rows:
        for word in unknown_words(tokenizer, f"{row.question}\n{row.answer}"):
            lacking.setdefault(word, row.question)
    if lacking:
        word, question = next(iter(lacking.items()))
        raise CopraError(
            f"task {task}: the tokenizer, trained on another task, lacks {len(lacking)} of the words in its "
            f"questions and answers, such as {word!r} in {shown(question)}. Give the base tokenizer: bpe, "
            f"train on a task with these words, or leave {task!r} out of evaluation.tasks."
        )


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the words of a text that a tokenizer with a closed vocabulary lacks, once each."""
    unknown = tokenizer.unk_token_id
    if unknown in (None, tokenizer.eos_token_id):
        return []
    encoded = tokenizer(text, add_special_tokens=False)
    places = [index for index, token in enumerate(encoded["input_ids"]) if token == unknown]
    return list(dict.fromkeys(text[slice(*encoded.token_to_chars(index))] for index in places))


def mark_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens of `### ` that do not depend on the answer, which may include the space."""
    number, word = (_line(tokenizer, ANSWER + answer) for answer in ("7", "x"))
    same = sum(a == b for a, b in zip(number, word, strict=False))
    # If neither answer is in the vocabulary, both are the unknown token.
    return min(same, len(number) - 1, len(word) - 1)


def first_token(tokenizer: PreTrainedTokenizerBase, line: str) -> int | None:
    """Return the first token of `line` after a line break; None if the tokenizer drops all of it."""
    return next(iter(_line(tokenizer, line)), None)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer adds before every text (a begin token, or nothing).

    Raises:
        CopraError: the tokens of a text with special tokens do not contain those without.
    """
    text = "x 1\n"
    whole = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    for first in range(len(whole) - len(bare) + 1):
        if whole[first : first + len(bare)] == bare:
            return whole[:first]
    raise CopraError(
        f"the tokenizer reads {text!r} as {tokenizer.convert_ids_to_tokens(whole)} with its special tokens "
        f"and as {tokenizer.convert_ids_to_tokens(bare)} without, so what it begins a text with is unknown. "
        "Take a base whose tokenizer only adds tokens before and after a text."
    )


def typical_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> dict[str, int]:
    """Return the rounded mean numbers of tokens of the prompt, and of the chain of thought with its answer.

    They are the typical answer of a base, on which FLOPs budgets of prunings are based.
    """
    token_rows = tokenize(tokenizer, rows)
    prompt = sum(len(row.question) for row in token_rows)
    generated = sum(sum(map(len, row.steps)) + len(row.answer) for row in token_rows)
    return {"prompt": round(prompt / len(rows)), "generated": round(generated / len(rows))}


def _line(tokenizer: PreTrainedTokenizerBase, line: str) -> list[int]:
    """Return the tokens of a line that follows another line."""
    ((_, tokens),) = cut_at_lines(tokenizer, [["x\n", line]], lambda _: f"line {line!r}")
    return tokens
