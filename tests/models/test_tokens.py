import pytest
from tokenizers import Tokenizer, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from copra.data.tokenization import (
    ANSWER,
    MARKERS,
    beginning,
    markers_of,
    pad_id,
    tokenize,
    train_tokenizer,
    typical_lengths,
)
from copra.schema.base import FromScratch
from copra.tasks.task import Row
from copra.utils.errors import CopraError

SIZES = {"hidden_size": 8, "layers": 1, "heads": 1, "intermediate_size": 8}
ODD_ROWS = [
    Row("Ann has $1,250.50; is that 1/2?", ("<<1250.5/2=625.25>>", "it's -3_4"), "1,000"),
    Row("Größe \t 12  und 7", (), "−7"),
]


def whole_text(row: Row) -> str:
    return row.question + "\n" + "".join(step + "\n" for step in row.steps) + "### " + row.answer


def trained(kind: str, rows) -> PreTrainedTokenizerFast:
    return train_tokenizer(FromScratch(**SIZES, tokenizer=kind, vocabulary=400), rows)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_pieces_together_are_the_whole_text(rows, kind):
    rows = [*rows, *ODD_ROWS]
    tokenizer = trained(kind, rows)
    for row, tokens in zip(rows, tokenize(tokenizer, rows), strict=True):
        joined = [*tokens.question, *(token for step in tokens.steps for token in step), *tokens.answer]
        assert joined == [*tokenizer(whole_text(row))["input_ids"], tokenizer.eos_token_id]
        assert tokens.id == row.id
        assert len(tokens.steps) == len(row.steps)


def test_words_worked_out(rows):
    tokenizer = trained("words", [*rows, *ODD_ROWS])
    row = Row("2 and 13 ?", ("2 + 13 = 15",), "15")
    (tokens,) = tokenize(tokenizer, [row])
    words = tokenizer.convert_ids_to_tokens
    assert words(tokens.question) == ["2", "and", "<|unknown|>", "?", "\n"]
    (odd,) = tokenize(tokenizer, ODD_ROWS[:1])
    assert [words(step) for step in odd.steps] == [
        ["<<", "1250", ".", "5", "/", "2", "=", "625", ".", "25", ">>", "\n"],
        ["it", "'", "s", "-", "3", "_", "4", "\n"],
    ]
    assert words(odd.answer) == ["###", "1", ",", "000", "<|end|>"]


def test_bpe_keeps_digits_apart_and_text_whole(rows):
    rows = [*rows, *ODD_ROWS]
    tokenizer = trained("bpe", rows)
    (tokens,) = tokenize(tokenizer, [Row("Zoë has 1234 ?", (), "98")])
    assert tokenizer.decode(tokens.question) == "Zoë has 1234 ?\n"
    assert [t for t in tokenizer.convert_ids_to_tokens(tokens.question) if t in "1234"] == list("1234")
    assert tokenizer.convert_ids_to_tokens(tokens.answer)[-3:] == ["9", "8", "<|end|>"]
    assert tokenizer.decode(tokenizer(whole_text(ODD_ROWS[1]))["input_ids"]) == whole_text(ODD_ROWS[1])


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_the_answer_mark_begins_every_answer(rows, kind):
    """The evaluation finds the end of the chain by it."""
    tokenizer = trained(kind, rows)
    mark = tokenizer(ANSWER)["input_ids"][0]
    for tokens in tokenize(tokenizer, rows):
        assert tokens.answer.index(mark) == 0
        assert tokens.answer.count(mark) == 1
        assert all(mark not in step for step in tokens.steps)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_training_a_tokenizer_is_deterministic(rows, kind):
    assert trained(kind, rows).get_vocab() == trained(kind, rows).get_vocab()


def across_lines(rows) -> PreTrainedTokenizerFast:
    """A BPE tokenizer that knows no lines, so that its merges run over their ends."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(map(whole_text, rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def test_a_tokenizer_that_merges_over_line_ends_is_refused(rows):
    with pytest.raises(CopraError, match=f"row {rows[0].id}: .*line by line"):
        tokenize(across_lines(rows), rows)


def with_special_tokens(tokenizer, template: str):
    """Let a tokenizer put these tokens around every text."""
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|begin|>", "<|end|>")]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["words", "bpe"])
@pytest.mark.parametrize(
    ("template", "begins"),
    [
        ("$A", 0),
        ("<|begin|> $A", 1),
        ("$A <|end|>", 0),
        ("<|begin|> $A <|end|>", 1),
        ("<|begin|> <|begin|> $A <|end|> <|end|>", 2),
    ],
)
def test_the_beginning_is_found_whatever_follows_the_text(rows, kind, template, begins):
    tokenizer = trained(kind, rows)
    begin = with_special_tokens(tokenizer, template)
    assert beginning(tokenizer) == [begin] * begins
    plain = tokenizer(rows[0].question + "\n", add_special_tokens=False)["input_ids"]
    (tokens,) = tokenize(tokenizer, rows[:1])
    assert tokens.question == [begin] * begins + plain
    assert tokens.answer.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_changes_the_text_with_its_special_tokens_is_refused(rows, monkeypatch):
    tokenizer = trained("bpe", rows)
    special = tokenizer("x 1\n")["input_ids"][::-1]
    call = type(tokenizer).__call__

    def changing(self, text, **options):
        return {"input_ids": special} if not options else call(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", changing)
    with pytest.raises(CopraError, match=r"the tokenizer reads 'x 1\\n' as .* without"):
        beginning(tokenizer)


def test_a_begin_token_stands_before_the_question_only(rows):
    tokenizer = trained("words", rows)
    plain = tokenize(tokenizer, rows)
    assert beginning(tokenizer) == []
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    assert beginning(tokenizer) == [begin]
    for with_begin, without in zip(tokenize(tokenizer, rows), plain, strict=True):
        assert with_begin.question == [begin, *without.question]
        assert (with_begin.steps, with_begin.answer) == (without.steps, without.answer)


def test_markers_are_found_or_missed(word_tokenizer, rows):
    markers = markers_of(word_tokenizer)
    ids = [markers.start, markers.latent, markers.end]
    assert word_tokenizer.convert_ids_to_tokens(ids) == list(MARKERS)
    assert all(word_tokenizer(text)["input_ids"] == [i] for text, i in zip(MARKERS, ids, strict=True))
    for kind in ("words", "bpe"):
        with pytest.raises(CopraError, match="no marker tokens"):
            markers_of(trained(kind, rows))


def test_padding_falls_back_to_the_end_token(word_tokenizer, rows):
    assert word_tokenizer.convert_ids_to_tokens(pad_id(word_tokenizer)) == "<|pad|>"
    without = across_lines(rows)
    assert pad_id(without) == without.eos_token_id


def test_typical_lengths(word_tokenizer):
    rows = [Row("1 and 2 ?", ("1 + 2 = 3",), "3"), Row("1 and 2 and 3 ?", ("1 + 2 = 3", "3 + 3 = 6"), "6")]
    # Prompts of 5 and 7 tokens with their line breaks; 6 a step, 3 an answer: 9 and 15.
    assert typical_lengths(word_tokenizer, rows) == {"prompt": 6, "generated": 12}
    assert typical_lengths(word_tokenizer, rows[1:]) == {"prompt": 7, "generated": 15}
    assert tokenize(word_tokenizer, []) == []
