"""Predictions from answers written by hand, and from a real decode."""

import pytest

from copra.cost.flops import PARTS, PHASES, FlopCounter
from copra.errors import CopraError
from copra.evaluation import accuracy
from copra.evaluation.accuracy import predictions, share_correct
from copra.inference.decode import Answer
from copra.models.checkpoint import Checkpoint
from copra.models.tokens import markers_of
from copra.reasoning.layout import Decoding
from copra.tasks.task import Row

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
    return Checkpoint(base.model.eval(), base.tokenizer, {})


@pytest.fixture
def decoding(checkpoint):
    markers = markers_of(checkpoint.tokenizer)
    return Decoding((markers.start,), 3, "hidden", markers.latent, (markers.end,))


@pytest.fixture
def written(checkpoint, monkeypatch):
    def decode(model, prompts, decoding, **options):
        words = [checkpoint.tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        assert [" ".join(w).removesuffix(" \n") for w in words] == [row.question for row in ROWS]
        ids = checkpoint.tokenizer.convert_tokens_to_ids
        return [Answer(ids(text.split(" ")), not text.endswith("<|end|>")) for text, *_ in WRITTEN]

    monkeypatch.setattr(accuracy, "decode", decode)


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
    assert (sum(table[f"flops_{part}"] for part in PARTS) == table["flops"]).all()
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
    monkeypatch.setattr(accuracy, "decode", lambda *_, **__: [Answer(ids(["###", "3", "<|end|>"]), False)])
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
    checkpoint = Checkpoint(base.model.eval(), base.tokenizer, {})
    markers = markers_of(base.tokenizer)
    decoding = Decoding((markers.start,), 3, "hidden", markers.latent, (markers.end,))
    table = predictions(checkpoint, decoding, ROWS[2:3], 64 - 7 - 5 + 1, "number")
    assert table["n_generated"].tolist() == [53]
