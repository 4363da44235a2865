from dataclasses import replace

import pytest

from copra.data.sequences import GenerationSpec, Prompting
from copra.data.tokenization import markers_of
from copra.pruning.scoring.calibration import calibration_batches, calibration_name, text_batch
from copra.tasks.task import Row
from copra.utils.errors import CopraError

ROWS = [
    Row("1 and 2 ?", ("1 + 2 = 3",), "3"),
    Row("4 ?", (), "4"),
    Row("1 and 2 and 3 ?", ("1 + 2 = 3", "3 + 3 = 6"), "6"),
]
STEPS = [
    "1 and 2 ? \n 1 + 2 = 3 \n ### 3 <|end|>",
    "4 ? \n ### 4 <|end|>",
    "1 and 2 and 3 ? \n 1 + 2 = 3 \n 3 + 3 = 6 \n ### 6 <|end|>",
]
LATENTS = [
    "1 and 2 ? \n <|start-latent|> <|latent|> <|latent|> <|end-latent|> ### 3 <|end|>",
    "4 ? \n <|start-latent|> <|latent|> <|latent|> <|end-latent|> ### 4 <|end|>",
    "1 and 2 and 3 ? \n <|start-latent|> <|latent|> <|latent|> <|end-latent|> ### 6 <|end|>",
]
# Tokens before the first label: the question, or all that stands before "###".
BEFORE = {"cot": (5, 3, 7), "answer": (11, 3, 19), "latent": (9, 7, 11)}


@pytest.fixture
def decoding(word_tokenizer):
    markers = markers_of(word_tokenizer)
    return GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,))


@pytest.mark.parametrize("objective", ["cot", "answer", "latent"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_worked_out(word_tokenizer, decoding, objective, batch_size):
    texts = [text.split(" ") for text in (LATENTS if objective == "latent" else STEPS)]
    batches = list(calibration_batches(word_tokenizer, ROWS, objective, batch_size, decoding))
    assert [len(batch) for batch in batches] == {1: [1, 1, 1], 2: [2, 1]}.get(batch_size, [3])
    number = 0
    for batch in batches:
        group = texts[number : number + len(batch)]
        # Where there are latents, the first ones stand below each other.
        first = max(words.index("<|latent|>") for words in group) if objective == "latent" else 0
        assert batch.max_latents == (2 if objective == "latent" else 0)
        for row, words in enumerate(group):
            left = first - words.index("<|latent|>") if objective == "latent" else 0
            right = batch.tokens.shape[1] - left - len(words)
            ids, before = word_tokenizer.convert_tokens_to_ids(words), BEFORE[objective][number]
            pad = word_tokenizer.pad_token_id
            assert batch.ids[row] == ROWS[number].id
            assert batch.tokens[row].tolist() == [pad] * left + ids + [pad] * right
            assert batch.mask[row].tolist() == [0] * left + [1] * len(words) + [0] * right
            assert batch.labels[row].tolist() == [-100] * (left + before) + ids[before:] + [-100] * right
            assert batch.latent[row].tolist() == [
                left <= column < left + len(words) and words[column - left] == "<|latent|>"
                for column in range(batch.tokens.shape[1])
            ]
            number += 1
    assert number == 3


@pytest.mark.parametrize("latents", [None, 0])
def test_without_latents_and_markers_the_answer_follows_the_question(word_tokenizer, decoding, latents):
    way = None if latents is None else replace(decoding, prefix_ids=(), latents=0, suffix_ids=())
    batch = next(calibration_batches(word_tokenizer, ROWS[:1], "latent", 8, way))
    words = ["1", "and", "2", "?", "\n", "###", "3", "<|end|>"]
    assert batch.tokens.tolist() == [word_tokenizer.convert_tokens_to_ids(words)]
    assert (batch.labels[0] == -100).tolist() == [True] * 5 + [False] * 3
    assert batch.max_latents == 0


@pytest.mark.parametrize(
    ("changes", "named", "instead"),
    [
        ({"prompting": Prompting("1 ? 1", "{question}", ("?",), "strict")}, "few_shot", "'cot' for it"),
        ({"iterations": 1}, "iterations", "'answer' or 'cot'"),
        ({"emulated": True}, "icot_kd", "'answer' or 'cot'"),
    ],
)
def test_answers_that_are_no_single_sequence_are_refused(word_tokenizer, decoding, changes, named, instead):
    way = replace(decoding, **changes)
    with pytest.raises(CopraError, match=named) as error:
        next(calibration_batches(word_tokenizer, ROWS, "latent", 8, way))
    assert instead in str(error.value)
    assert len(next(calibration_batches(word_tokenizer, ROWS, "answer", 8, way))) == 3


def test_as_many_iterations_as_latents_are_the_sequential_chain(word_tokenizer, decoding):
    assert next(
        calibration_batches(word_tokenizer, ROWS, "latent", 8, replace(decoding, iterations=2))
    ).latent.any()


def test_the_name_depends_on_all_that_is_scored(decoding):
    names = [
        calibration_name(ROWS, "cot", decoding),
        calibration_name(ROWS, "answer", decoding),
        calibration_name(ROWS, "latent", decoding),
        calibration_name(ROWS, "latent", replace(decoding, latents=3)),
        calibration_name(ROWS, "latent", None),
        calibration_name(ROWS[:2], "cot", decoding),
        calibration_name(ROWS[::-1], "cot", decoding),
        calibration_name([*ROWS[:2], Row(ROWS[2].question, ROWS[2].steps, "7")], "cot", decoding),
        calibration_name([*ROWS[:2], Row(ROWS[2].question, ROWS[2].steps[:1], "6")], "cot", decoding),
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {16}
    assert calibration_name(list(ROWS), "cot", None) == names[0], "how it answers does not matter to text"


def test_one_batch_of_all_rows(word_tokenizer):
    input_ids, mask = text_batch(word_tokenizer, ROWS)
    assert input_ids.shape == mask.shape == (3, 22)
    assert mask.sum(1).tolist() == [len(text.split(" ")) for text in STEPS]
