"""Tokens cut at line ends, of tokenizers that read a line alone otherwise than within a text."""

import json

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from copra.data.lines import cut_at_lines
from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import ANSWER, first_token, mark_length, tokenize
from copra.generation.prompts import prompts_of
from copra.tasks.task import Row
from copra.utils.errors import CopraError

BYTES = [f"<0x{number:02X}>" for number in range(256)]
MORE = [
    Row("Ann has 3 \u2014 \u6a21.\n\nShe eats 1.", ("<<3-1=2>>", "so 2 left "), "2"),
    Row(" spaces  around ", (), "-1/2"),
]


def spaced(kind, rows):
    """A BPE tokenizer with byte fallback that puts a space sign before every text, as Llama 2's does.

    "prepend": as its tokenizer.json has it; "metaspace": as newer conversions do; "bytes": a byte-level one.
    """
    if kind == "bytes":
        made = Tokenizer(tokenizer_models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        special, alphabet, texts = ["<unk>", "</s>"], pre_tokenizers.ByteLevel.alphabet(), map(whole, rows)
    else:
        made = Tokenizer(tokenizer_models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if kind == "prepend":
            steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            made.normalizer = normalizers.Sequence(steps)
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        special, alphabet = ["<unk>", "</s>", *BYTES], []
        texts = (word for row in rows for word in whole(row).replace("\n", " ").split())
    sizes = {"vocab_size": 360, "special_tokens": special, "initial_alphabet": alphabet}
    made.train_from_iterator(texts, trainers.BpeTrainer(**sizes, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def whole(row):
    return row.question + "\n" + "".join(step + "\n" for step in row.steps) + ANSWER + row.answer


KINDS = ["prepend", "metaspace", "bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_the_tokens_of_the_whole_text(rows, kind):
    rows = [*rows, *MORE]
    tokenizer = spaced(kind, rows)
    for row, tokens in zip(rows, tokenize(tokenizer, rows), strict=True):
        joined = [*tokens.question, *(token for step in tokens.steps for token in step), *tokens.answer]
        assert joined == [
            *tokenizer(whole(row), add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        assert tokens.question == tokenizer(row.question + "\n", add_special_tokens=False)["input_ids"]
        decoded = [tokenizer.decode(part) for part in (*tokens.steps, tokens.answer[:-1])]
        assert decoded == [*(step + "\n" for step in row.steps), ANSWER + row.answer]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mark_is_that_of_an_answer_after_a_line_break(rows, kind):
    """Alone, `### ` begins with a space sign that no answer has."""
    tokenizer = spaced(kind, rows)
    alone = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    mark = mark_length(tokenizer)
    answers = [row.answer for row in tokenize(tokenizer, rows)]
    assert mark > 0
    assert {tuple(answer[:mark]) for answer in answers} == {tuple(answers[0][:mark])}
    assert tokenizer.decode(answers[0][:mark]).strip() == "###"
    assert first_token(tokenizer, ANSWER + "7") == answers[0][0] != alone[0]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_read_as_in_training(rows, kind):
    tokenizer = spaced(kind, rows)
    expected = [row.question for row in tokenize(tokenizer, rows)]
    assert prompts_of(tokenizer, rows, None).prompts == expected
    # Without the right answer at hand, a question has the same tokens.
    blind = [Row(row.question, (), "0") for row in rows]
    assert [row.question for row in tokenize(tokenizer, blind)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_examples_are_the_whole_text(rows, kind):
    tokenizer = spaced(kind, rows)
    prompting = Prompting("Q: 1 and 2 ?\nA: 3.\n\n", "Q: {question}\nA:", ("Q:",), "flexible")
    asked = prompts_of(tokenizer, rows, GenerationSpec((), 0, "hidden", 0, (), prompting=prompting))
    assert len(asked.prefix) > 5
    for row, prompt in zip(rows, asked.prompts, strict=True):
        text = f"{prompting.exemplars}Q: {row.question}\nA:"
        assert asked.prefix + prompt == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert asked.ends(tokenizer(" 5 Q: more", add_special_tokens=False)["input_ids"]) is not None


def test_equal_pieces_are_tokenized_once_where_lines_stand_alone(word_tokenizer, rows, monkeypatch):
    texts = [[row.question + "\n", ANSWER + row.answer] for row in rows] * 10
    asked = []
    call = type(word_tokenizer).__call__

    def counting(self, text, **options):
        asked.append(list(text))
        return call(self, text, **options)

    monkeypatch.setattr(type(word_tokenizer), "__call__", counting)
    found = cut_at_lines(word_tokenizer, texts, str)
    assert len(asked[-1]) == len(set(asked[-1])) == len({piece for text in texts for piece in text})
    assert found[0] == found[len(rows)]
    assert found[0][0] is not found[len(rows)][0], "one row must not change another"


def test_a_token_over_a_line_end_is_refused_wherever_it_stands(rows):
    """After a thousand good rows, too: of a byte-level BPE that joins two line breaks."""
    tokenizer = spaced("bytes", rows)
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    made["model"]["vocab"]["\u010a\u010a"] = len(made["model"]["vocab"])
    made["model"]["merges"].insert(0, ["\u010a", "\u010a"])
    made["pre_tokenizer"]["use_regex"] = False
    joining = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)), eos_token="</s>", unk_token="<unk>"
    )
    good = [Row(f"{number} ?", (), "1") for number in range(1100)]
    assert len(tokenize(joining, good)) == 1100
    bad = Row("two lines", ("",), "1")
    with pytest.raises(
        CopraError, match=rf"^row {bad.id}: .*line by line \('\u010a\u010a' spans the end of a line\)"
    ):
        tokenize(joining, [*good, bad])


def test_a_tokenizer_that_drops_characters_is_refused_where_it_must_be_cut():
    """The library's offsets are those of the text without them, so lines would be cut in the wrong places."""
    signs = ["<unk>", "</s>", "\u2581", *"\n# 1"]
    made = Tokenizer(
        tokenizer_models.BPE(vocab={sign: number for number, sign in enumerate(signs)}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    texts = [["1 1\n", "# 1"]]
    assert cut_at_lines(tokenizer, texts, str) == [[[2, 6, 2, 6, 3], [4, 2, 6]]]
    with pytest.raises(CopraError, match=r"^0: .*line by line"):
        cut_at_lines(tokenizer, [["x y\n", "# 1"]], str)


def test_no_texts_are_no_tokens(rows):
    assert tokenize(spaced("prepend", rows), []) == []
