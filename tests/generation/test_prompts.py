"""What a model is given, and where its text ends, by hand and letter by letter."""

import copy

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import END, tokenize
from copra.generation.prompts import prompts_of, until_stop

EXAMPLES = "Q: 2 and 2 ?\nA: 2 + 2 = 4 The answer is 4.\n\n"


@pytest.fixture(scope="module")
def tokenizer(word_base):
    """A tokenizer of bytes and the pieces that the rows are rich in."""
    return word_base(tokenizer="bpe", vocabulary=300).tokenizer


def asking(exemplars: str = EXAMPLES, question: str = "Q: {question}\nA:", stops=("Q:",)) -> GenerationSpec:
    return GenerationSpec((), 0, "hidden", 0, (), prompting=Prompting(exemplars, question, stops, "flexible"))


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("decoding", [None, GenerationSpec((7,), 2, "hidden", 8, (9,))])
def test_a_trained_model_is_given_the_question_and_its_line_break(word_tokenizer, rows, decoding):
    asked = prompts_of(word_tokenizer, rows, decoding)
    assert asked.prompts == [row.question for row in tokenize(word_tokenizer, rows)]
    assert [word_tokenizer.decode(prompt) for prompt in asked.prompts] == [
        row.question + " \n" for row in rows
    ]
    assert (asked.prefix, asked.ends) == ([], None)


def test_a_prompted_model_is_given_the_examples_and_the_question_in_their_form(tokenizer, rows):
    asked = prompts_of(tokenizer, rows, asking())
    assert tokenizer.decode(asked.prefix) == EXAMPLES
    for row, prompt in zip(rows, asked.prompts, strict=True):
        assert asked.prefix + prompt == encoded(tokenizer, f"{EXAMPLES}Q: {row.question}\nA:")


def test_a_begin_token_stands_once_before_the_examples(tokenizer, rows):
    tokenizer = copy.deepcopy(tokenizer)
    begin = tokenizer.convert_tokens_to_ids(END)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, begin)]
    )
    assert tokenizer("x")["input_ids"][0] == begin
    asked = prompts_of(tokenizer, rows, asking())
    for row, prompt in zip(rows, asked.prompts, strict=True):
        assert asked.prefix + prompt == tokenizer(f"{EXAMPLES}Q: {row.question}\nA:")["input_ids"]
        assert begin not in prompt


def test_what_the_tokenizer_reads_across_the_seam_belongs_to_the_prompt(tokenizer, rows):
    """Here ` and` is one token, of which the examples hold the first two letters."""
    assert "Ġand" in tokenizer.get_vocab()
    asked = prompts_of(tokenizer, rows, asking(exemplars="1 and 2 is 3\n 1 a", question="nd {question}"))
    assert tokenizer.decode(asked.prefix) == "1 and 2 is 3\n 1"
    for row, prompt in zip(rows, asked.prompts, strict=True):
        assert tokenizer.decode(prompt[0]) == " and"
        assert asked.prefix + prompt == encoded(tokenizer, f"1 and 2 is 3\n 1 and {row.question}")


def test_line_breaks_before_a_word_are_read_as_gpt2_reads_them(rows):
    """Two of them are one token at the end of a text, but two tokens before a word."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=300, show_progress=False
    )
    model.train_from_iterator([EXAMPLES] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    whole = encoded(tokenizer, f"{EXAMPLES}Q: 1")
    assert encoded(tokenizer, EXAMPLES) != whole[: len(encoded(tokenizer, EXAMPLES))]
    asked = prompts_of(tokenizer, rows, asking())
    assert tokenizer.decode(asked.prefix) == EXAMPLES.removesuffix("\n\n")
    for row, prompt in zip(rows, asked.prompts, strict=True):
        assert asked.prefix + prompt == encoded(tokenizer, f"{EXAMPLES}Q: {row.question}\nA:")


def test_without_questions_there_are_no_prompts(tokenizer):
    asked = prompts_of(tokenizer, [], asking())
    assert asked.prompts == []
    assert tokenizer.decode(asked.prefix) == EXAMPLES


@pytest.mark.parametrize(
    ("stops", "text", "end"),
    [
        (("Q:",), " 3.\n\nQ: 4 and", " 3.\n\nQ:"),
        (("Q:",), "Q: 4", "Q:"),
        (("Q:",), " 3 Q", None),
        (("Q:",), "", None),
        (("\n\n", "Q:"), " 3.\n\nQ: 4 and", " 3.\n\n"),
        (("Q:", "\n\n"), " 3.\n\nQ: 4 and", " 3.\n\n"),
        (("Q:", "\n\n"), " 3. Q: 4 and\n\n", " 3. Q:"),
        ((), " 3.\n\nQ: 4 and", None),
        (("é",), "1é2", "1é"),
    ],
)
def test_a_text_ends_with_the_token_that_completes_a_stop(tokenizer, rows, stops, text, end):
    ends = prompts_of(tokenizer, rows, asking(stops=stops)).ends
    tokens = encoded(tokenizer, text)
    assert ends(tokens) == (None if end is None else len(encoded(tokenizer, end)))


def test_a_stop_within_a_longer_token_ends_with_that_token(tokenizer, rows):
    """Here ` and` is one token, and its last letter does not matter."""
    tokens = encoded(tokenizer, "1 and 2")
    assert tokenizer.convert_ids_to_tokens(tokens)[1] == "Ġand"
    assert prompts_of(tokenizer, rows, asking(stops=(" an",))).ends(tokens) == 2


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        (" 3.\n\nQ: 4", ("Q:",), " 3.\n\n"),
        (" 3. Q: 4 Q: 5", ("Q:",), " 3. "),
        (" 3.\n\nQ: 4", ("Q:", "\n\n"), " 3."),
        (" 3.\n\nQ: 4", ("\n\n", "Q:"), " 3."),
        ("Q:", ("Q:",), ""),
        (" 3. Q", ("Q:",), " 3. Q"),
        (" 3.", (), " 3."),
    ],
)
def test_a_text_is_read_up_to_its_first_stop(text, stops, kept):
    assert until_stop(text, asking(stops=stops).prompting) == kept
