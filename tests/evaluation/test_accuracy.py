"""Predictions from answers written by hand, and from a real decode."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from copra.cost.flops import FLOP_GROUPS, PHASES, FlopCounter
from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import markers_of
from copra.evaluation.accuracy import predictions, share_correct
from copra.generation import answering
from copra.generation.decode import Answer, decode
from copra.models.checkpoint import Checkpoint
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from helpers.manifests import manifest

ROWS = [
    Row("1 and 2 ?", ("1 + 2 = 3",), "3"),
    Row("4 ?", (), "4"),
    Row("1 and 2 and 3 ?", ("1 + 2 = 3", "3 + 3 = 6"), "6"),
    Row("2 and 3 ?", ("2 + 3 = 5",), "5"),
    Row("5 and 2 ?", ("5 + 2 = 7",), "7"),
    Row("1 and 1 ?", ("1 + 1 = 2",), "2"),
]
# What a model wrote, the answer in it, whether it is right, and the tokens before the answer mark.
WRITTEN = [
    ("1 + 2 = 3 \n ### 3 <|end|>", "3", True, 6),
    ("### 4 <|end|>", "4", True, 0),
    ("1 + 2 = 3 \n ### 5 \n ### 6 <|end|>", "6", True, 9),
    ("2 + 3 = 5 \n ### <|end|>", None, False, 6),
    ("5 + 2 = 7 \n 5 + 2 =", None, False, 10),
    ("### 3 <|end|>", "3", False, 0),
]


@pytest.fixture
def checkpoint(word_base):
    base = word_base()
    return Checkpoint(base.model.eval(), base.tokenizer, manifest())


@pytest.fixture
def decoding(checkpoint):
    markers = markers_of(checkpoint.tokenizer)
    return GenerationSpec((markers.start,), 3, "hidden", markers.latent, (markers.end,))


@pytest.fixture
def written(checkpoint, monkeypatch):
    def decode(model, prompts, decoding, **options):
        words = [checkpoint.tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        assert [" ".join(w).removesuffix(" \n") for w in words] == [row.question for row in ROWS]
        ids = checkpoint.tokenizer.convert_tokens_to_ids
        return [Answer(ids(text.split(" ")), not text.endswith("<|end|>")) for text, *_ in WRITTEN]

    monkeypatch.setattr(answering, "decode", decode)


@pytest.mark.usefixtures("written")
def test_a_row_a_question(checkpoint, decoding):
    table = predictions(checkpoint, decoding, ROWS, 20, "number")
    assert table["id"].tolist() == [row.id for row in ROWS]
    assert table["question"].tolist() == [row.question for row in ROWS]
    assert table["gold"].tolist() == [row.answer for row in ROWS]
    assert [value if isinstance(value, str) else None for value in table["extracted"]] == [
        w[1] for w in WRITTEN
    ]
    assert table["correct"].tolist() == [w[2] for w in WRITTEN]
    assert table["hit_length_limit"].tolist() == [False, False, False, False, True, False]
    assert table["generated"][0].split() == ["1", "+", "2", "=", "3", "###", "3"]


@pytest.mark.usefixtures("written")
def test_tokens_are_counted_by_what_they_are(checkpoint, decoding):
    table = predictions(checkpoint, decoding, ROWS, 20, "number")
    assert table["n_prompt"].tolist() == [5, 3, 7, 5, 5, 5]
    assert set(table["n_latent"]) == {3}
    assert set(table["n_marker"]) == {2}
    assert table["n_chain"].tolist() == [w[3] for w in WRITTEN]
    assert table["n_generated"].tolist() == [len(w[0].split(" ")) for w in WRITTEN]
    assert (table["n_chain"] + table["n_answer"] == table["n_generated"]).all()


@pytest.mark.usefixtures("written")
def test_flops_are_those_of_the_counts_and_add_up(checkpoint, decoding):
    table = predictions(checkpoint, decoding, ROWS, 20, "number")
    assert (sum(table[f"flops_{phase}"] for phase in PHASES) == table["flops"]).all()
    assert (sum(table[f"flops_{part}"] for part in FLOP_GROUPS) == table["flops"]).all()
    counter = FlopCounter(checkpoint.shape)
    for row in table.itertuples():
        assert row.flops == counter.of_answer(decoding, row.n_prompt, row.n_generated).total
        # One pass for the prompt, one a latent, one a fed-back token.
        assert row.depth == 1 + 3 + row.n_generated - 1


@pytest.mark.usefixtures("written")
def test_the_share_of_right_answers(checkpoint, decoding):
    assert share_correct(checkpoint, decoding, ROWS, 20, "number") == pytest.approx(3 / 6)


def test_numbers_and_texts_are_compared_in_their_own_way(checkpoint, decoding, monkeypatch):
    ids = checkpoint.tokenizer.convert_tokens_to_ids
    monkeypatch.setattr(answering, "decode", lambda *_, **__: [Answer(ids(["###", "3", "<|end|>"]), False)])
    row = [Row("1 and 2 ?", (), "3.0")]
    assert predictions(checkpoint, decoding, row, 20, "number")["correct"].tolist() == [True]
    assert predictions(checkpoint, decoding, row, 20, "text")["correct"].tolist() == [False]


def test_a_real_decode_agrees_with_itself_one_by_one(checkpoint, decoding):
    whole = predictions(checkpoint, decoding, ROWS, 8, "number", batch_size=4)
    alone = [predictions(checkpoint, decoding, [row], 8, "number").iloc[0] for row in ROWS]
    for (_, row), single in zip(whole.iterrows(), alone, strict=True):
        assert row.astype(str).to_dict() == single.astype(str).to_dict()
    assert (whole["n_generated"] <= 8).all()
    assert (whole["hit_length_limit"] == (whole["n_generated"] == 8)).all()


def test_answers_longer_than_the_model_are_refused(checkpoint, decoding):
    """64 positions, 7 for the longest question, 5 for the thought; the last token needs none."""
    room = 64 - 7 - 5 + 1
    assert len(predictions(checkpoint, decoding, ROWS, room, "number")) == len(ROWS)
    with pytest.raises(CopraError, match=f"row {ROWS[2].id}: .* leaves {room} for the answer"):
        predictions(checkpoint, decoding, ROWS, room + 1, "number")


def test_the_longest_answer_of_a_gpt2_fits_its_positions(word_base):
    """One position more would be an index error in the middle of a batch."""
    base = word_base("gpt2")
    checkpoint = Checkpoint(base.model.eval(), base.tokenizer, manifest())
    markers = markers_of(base.tokenizer)
    decoding = GenerationSpec((markers.start,), 3, "hidden", markers.latent, (markers.end,))
    table = predictions(checkpoint, decoding, ROWS[2:3], 64 - 7 - 5 + 1, "number")
    assert table["n_generated"].tolist() == [53]


EXAMPLES = "Q: 2 and 2 ?\nA: 2 + 2 = 4 The answer is 4.\n\nQ: 3 and 1 ?\nA: 3 + 1 = 4 The answer is 4.\n\n"
# What a prompted model wrote, the number stated first and whether it is right, the last number and so on.
PROMPTED = [
    (" 1 + 2 = 3 The answer is 3.\n\nQ:", "3", True, "3.", True),
    (" The answer is 5, no 4", "5,", False, "4", True),
    (" 3 + 3 = 6\n\nQ:", None, False, "6", True),
    (" 2 + 3 = 5 The answer is 6.\n\nQ: 5", "6", False, "6.", False),
    (" The answer is $7. Q:", None, False, "$7.", True),
    (" none", None, False, None, False),
]


def test_the_answer_mark_is_found_where_a_text_begins_with_a_space_sign(checkpoint, monkeypatch):
    """Alone, the mark has that sign in front; after a line break it has not."""
    signs = dict.fromkeys(["<|end|>", "\u2581", "##", "###", "\u2581###", *"\n#0123456789+=?andx"])
    merges = [("#", "#"), ("##", "#"), ("\u2581", "###")]
    made = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(signs)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    ids = tokenizer.convert_tokens_to_ids
    assert tokenizer("### 4")["input_ids"] == ids(["\u2581###", "\u2581", "4"])
    texts = [ids([*"1+2=3\n", "###", "\u2581", "3", "<|end|>"]), ids(["###", "\u2581", "4", "<|end|>"])]
    monkeypatch.setattr(answering, "decode", lambda *_, **__: [Answer(text, False) for text in texts])
    checkpoint = replace(checkpoint, tokenizer=tokenizer)
    table = predictions(checkpoint, GenerationSpec((), 0, "hidden", 0, ()), ROWS[:2], 12, "number")
    assert table["correct"].all()
    assert table["n_chain"].tolist() == [6, 0]
    assert table["n_answer"].tolist() == [4, 4]


@pytest.fixture
def spelled(word_base):
    """A model whose tokenizer knows every byte."""
    base = word_base(tokenizer="bpe", vocabulary=300, max_position_embeddings=256, initializer_range=0.2)
    return Checkpoint(base.model.eval(), base.tokenizer, manifest())


def asking(answer: str, stop: str = "Q:") -> GenerationSpec:
    return GenerationSpec(
        (), 0, "hidden", 0, (), prompting=Prompting(EXAMPLES, "Q: {question}\nA:", (stop,), answer)
    )


@pytest.mark.parametrize(("answer", "column"), [("strict", 1), ("flexible", 3)])
def test_a_prompted_models_answers_end_at_the_next_question(spelled, monkeypatch, answer, column):
    tokenizer = spelled.tokenizer

    def decode(model, prompts, decoding, *, prefix, ends, **options):
        assert tokenizer.decode(prefix) == EXAMPLES
        assert tokenizer.batch_decode(prompts) == [f"Q: {row.question}\nA:" for row in ROWS]
        assert [ends(tokenizer(text)["input_ids"]) is not None for text, *_ in PROMPTED] == [
            "Q:" in text for text, *_ in PROMPTED
        ]
        return [Answer(tokenizer(text)["input_ids"], "Q:" not in text) for text, *_ in PROMPTED]

    monkeypatch.setattr(answering, "decode", decode)
    table = predictions(spelled, asking(answer), ROWS, 40, "number")
    assert table["generated"].tolist() == [row[0] for row in PROMPTED]
    found = [value if isinstance(value, str) else None for value in table["extracted"]]
    # One more number stands after the stop of the fourth text.
    assert (found, table["correct"].tolist()) == (
        [row[column] for row in PROMPTED],
        [row[column + 1] for row in PROMPTED],
    )
    assert table["hit_length_limit"].tolist() == [False, True, False, False, False, True]


def test_worked_examples_are_counted_as_read_and_as_cached(spelled):
    table = predictions(spelled, asking("strict"), ROWS, 12, "number")
    examples = len(spelled.tokenizer(EXAMPLES)["input_ids"])
    questions = [len(spelled.tokenizer(f"Q: {row.question}\nA:")["input_ids"]) for row in ROWS]
    assert table["n_prompt"].tolist() == [examples + n for n in questions]
    assert not table[["n_latent", "n_marker"]].any(axis=None)
    counter = FlopCounter(spelled.shape)
    for row in table.itertuples():
        assert row.flops == counter.of_answer(None, row.n_prompt, row.n_generated).total
        # The projections and FFNs of the examples, and their scores against the whole prompt.
        saved = examples * (counter.projections + counter.ffn + row.n_prompt * counter.scores)
        assert row.flops_cached_prompt == row.flops - saved
        assert row.depth == row.n_generated


def test_without_examples_nothing_is_cached(checkpoint, decoding):
    table = predictions(checkpoint, decoding, ROWS, 4, "number")
    assert (table["flops_cached_prompt"] == table["flops"]).all()


def test_a_prompted_model_reads_the_examples_before_each_question(spelled):
    """Against prompts written out, one by one; the text ends with the token that completes a stop."""
    tokenizer, limit = spelled.tokenizer, 24
    options = {"stop": tokenizer.eos_token_id, "pad": 0, "max_new_tokens": limit, "batch_size": 1}
    prompts = [tokenizer(f"{EXAMPLES}Q: {row.question}\nA:")["input_ids"] for row in ROWS]
    texts = [decode(spelled.model, [prompt], None, **options)[0].tokens for prompt in prompts]
    # Two characters that some of the texts have, and not all.
    whole = [tokenizer.decode(tokens) for tokens in texts]
    pairs = [a + b for text in whole for a, b in pairwise(text) if (a + b).isascii()]
    stop = next(pair for pair in pairs if sum(pair in text for text in whole) < len(whole))
    table = predictions(spelled, asking("strict", stop), ROWS, limit, "number", batch_size=4)
    for row, tokens in zip(table.itertuples(), texts, strict=True):
        n = next((n for n in range(1, limit) if stop in tokenizer.decode(tokens[:n])), limit)
        assert row.n_generated == n
        assert row.generated == tokenizer.decode(tokens[:n])
        assert row.hit_length_limit == (stop not in tokenizer.decode(tokens))


def test_examples_need_positions_too(spelled):
    examples = len(spelled.tokenizer(EXAMPLES)["input_ids"])
    longest = len(spelled.tokenizer(f"Q: {ROWS[2].question}\nA:")["input_ids"])
    room = 256 - examples - longest + 1
    assert len(predictions(spelled, asking("strict"), ROWS, room, "number")) == len(ROWS)
    with pytest.raises(
        CopraError,
        match=f"row {ROWS[2].id}: .* {longest} tokens and its examples {examples} .* leaves {room} ",
    ):
        predictions(spelled, asking("strict"), ROWS, room + 1, "number")
