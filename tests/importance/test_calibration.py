import pytest

from copra.importance.calibration import calibration_batches, calibration_name, text_batch
from copra.tasks.task import Row

ROWS = [
    Row("1 and 2 ?", ("1 + 2 = 3",), "3"),
    Row("4 ?", (), "4"),
    Row("1 and 2 and 3 ?", ("1 + 2 = 3", "3 + 3 = 6"), "6"),
]
TEXTS = [
    "1 and 2 ? \n 1 + 2 = 3 \n ### 3 <|end|>",
    "4 ? \n ### 4 <|end|>",
    "1 and 2 and 3 ? \n 1 + 2 = 3 \n 3 + 3 = 6 \n ### 6 <|end|>",
]
WORDS = [text.split(" ") for text in TEXTS]
# Tokens before the first label: the question, or all that stands before "###".
BEFORE = {"cot": (5, 3, 7), "answer": (11, 3, 19)}


@pytest.mark.parametrize("objective", ["cot", "answer"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_worked_out(word_tokenizer, objective, batch_size):
    batches = list(calibration_batches(word_tokenizer, ROWS, objective, batch_size))
    assert [len(batch["input_ids"]) for batch in batches] == {1: [1, 1, 1], 2: [2, 1]}.get(batch_size, [3])
    number = 0
    for batch in batches:
        width = max(len(WORDS[number + i]) for i in range(len(batch["input_ids"])))
        for i in range(len(batch["input_ids"])):
            tokens, mask, labels = (batch[n][i].tolist() for n in ("input_ids", "attention_mask", "labels"))
            words, before = WORDS[number], BEFORE[objective][number]
            ids = word_tokenizer.convert_tokens_to_ids(words)
            padding = width - len(words)
            assert tokens == ids + [word_tokenizer.pad_token_id] * padding
            assert mask == [1] * len(words) + [0] * padding
            assert labels == [-100] * before + ids[before:] + [-100] * padding
            number += 1
    assert number == 3


def test_the_name_depends_on_all_that_is_scored():
    names = [
        calibration_name(ROWS, "cot"),
        calibration_name(ROWS, "answer"),
        calibration_name(ROWS[:2], "cot"),
        calibration_name(ROWS[::-1], "cot"),
        calibration_name([ROWS[0], ROWS[1], Row(ROWS[2].question, ROWS[2].steps, "7")], "cot"),
        calibration_name([ROWS[0], ROWS[1], Row(ROWS[2].question, ROWS[2].steps[:1], "6")], "cot"),
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {16}
    assert calibration_name(list(ROWS), "cot") == names[0]


def test_one_batch_of_all_rows(word_tokenizer):
    input_ids, mask = text_batch(word_tokenizer, ROWS)
    assert input_ids.shape == mask.shape == (3, 22)
    assert mask.sum(1).tolist() == [len(words) for words in WORDS]
