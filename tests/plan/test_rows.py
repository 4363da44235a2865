"""Rows in tokens: against the tokenizers themselves, and against prepared data."""

import pytest

from copra.data.sequences import TokenRow
from copra.plan.rows import GSM8K, SPLITS, task_rows, thinned, tokens_of
from copra.schema.base import Base, FromScratch
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.prepare import prepare
from copra.tasks.prosqa import Prosqa
from copra.tasks.word_sums import WordSums
from copra.utils.files import write_json

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16, "max_position_embeddings": 512}
WORDS = Base(from_scratch=FromScratch(**SIZES))
BPE = Base(from_scratch=FromScratch(**SIZES, tokenizer="bpe", vocabulary=512))
HUB = Base(path="somebody/something")


def lengths(rows):
    return sorted((len(row.question), *map(len, row.steps), len(row.answer)) for row in rows)


@pytest.fixture
def sums():
    return WordSums(train=40, valid=12, test=12, min_steps=2, max_steps=4, order="reverse")


@pytest.fixture
def prepared(sums, tmp_path):
    """A folder of results with the data of `sums`."""
    prepare(sums, tmp_path / "data" / "sums")
    return tmp_path


@pytest.mark.parametrize("there", [True, False])
def test_words_are_counted_as_the_tokenizer_does(sums, prepared, tmp_path, there):
    """Whether the data is there, or drawn anew."""
    from copra.data.tokenization import tokenize, typical_lengths
    from copra.models.bases import make_base

    results = prepared if there else tmp_path / "nothing"
    found = task_rows("sums", sums, WORDS, None, results)
    rows = {split: [row for each, row in sums.rows() if each == split] for split in SPLITS}
    model, tokenizer = make_base(WORDS, rows["train"], 0)
    for split in SPLITS:
        assert lengths(found.rows[split]) == lengths(tokenize(tokenizer, rows[split]))
    assert found.sizes == {"train": 40, "valid": 12, "test": 12}
    assert found.typical() == typical_lengths(tokenizer, rows["valid"])
    # The words of the text, three special tokens and three markers.
    assert found.words + 6 == len(tokenizer) == model.config.vocab_size
    assert (found.assumed == ()) == there


def test_a_row_stands_for_rows_of_its_length():
    rows = [TokenRow(str(length), [0] * length, [], [0]) for length in range(1, 101)]
    kept = thinned(rows, 10, tokens_of)
    assert [len(row.question) for row in kept] == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]
    assert thinned(rows[:4], 10, tokens_of) == rows[:4]


def test_a_made_base_corrects_what_is_guessed(sums, prepared):
    """Of others' tokenizers the lengths are guessed until the base's manifest says what they are."""
    guessed = task_rows("sums", sums, HUB, None, prepared)
    assert any("guessed" in line for line in guessed.assumed)
    manifest = prepared / "copra.json"
    write_json(manifest, {"typical_answer": {"prompt": 100, "generated": 40}})
    found = task_rows("sums", sums, HUB, manifest, prepared)
    assert found.assumed == ()
    assert found.typical() == {"prompt": 100, "generated": 40}
    # The lengths differ as they did.
    longest, before = (max(len(row.question) for row in each.rows["train"]) for each in (found, guessed))
    assert longest == pytest.approx(before * 100 / guessed.typical()["prompt"], abs=2)


@pytest.mark.parametrize(
    ("name", "train"),
    [("whynlp/gsm8k-aug", 385620), ("whyNLP/gsm8k-aug", 385620), ("zen-E/GSM8k-Aug", 385620 - 500)],
)
def test_gsm8k_aug_is_known_before_it_is_fetched(tmp_path, name, train):
    """One copy has a validation split of its own; of the other training rows are set aside."""
    found = task_rows("gsm8k", Gsm8k(hub_name=name), HUB, None, tmp_path)
    assert found.sizes == {"train": train, "valid": 500, "test": 1319}
    assert not any("not known" in line for line in found.assumed)


def test_rows_of_an_unknown_data_set_are_assumed_and_said_to_be(tmp_path):
    found = task_rows("gsm8k", Gsm8k(hub_name="some/copy"), HUB, None, tmp_path)
    assert found.sizes == {"train": 7473 - 500, "valid": 500, "test": 1319}
    assert "gsm8k: as many rows as GSM8K has; those of some/copy are not known" in found.assumed


def test_gsm8k_is_told_before_it_is_fetched(tmp_path):
    found = task_rows("gsm8k", Gsm8k(limit={"test": 100}), HUB, None, tmp_path)
    assert found.sizes == {"train": 7473 - 500, "valid": 500, "test": 100}
    # Means of all 7,473 training rows: 53.6 tokens with their line break, 27.5 of equations; 67.3 in words.
    assert found.typical()["prompt"] == pytest.approx(54, abs=2)
    assert found.typical()["generated"] == pytest.approx(30, abs=2)
    sentences = task_rows("gsm8k", Gsm8k(steps="sentences"), HUB, None, tmp_path)
    assert sentences.typical()["generated"] == pytest.approx(70, abs=3)
    assert len(found.rows["train"]) == len(GSM8K)


def test_a_small_vocabulary_makes_gsm8k_longer(tmp_path):
    assert task_rows("gsm8k", Gsm8k(), BPE, None, tmp_path).typical() == {"prompt": 73, "generated": 43}


def test_rows_of_files_are_counted(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n' * 30)
    (tmp_path / "test.txt").write_text("a||<<1+1=2>> #### 2\n" * 7 + "b||<<1+1=2>> #### 2")
    files = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.txt")}
    found = task_rows("gsm8k", Gsm8k(source="files", validation_rows=5, **files), HUB, None, tmp_path)
    assert found.sizes == {"train": 25, "valid": 5, "test": 8}
    monkeypatch.delenv("NOWHERE", raising=False)
    files["train"] = "${NOWHERE}/train.jsonl"
    found = task_rows("gsm8k", Gsm8k(source="files", **files), HUB, None, tmp_path)
    assert found.sizes["train"] == 6973
    assert any("${NOWHERE}/train.jsonl" in line for line in found.assumed)


def test_generated_rows_stand_in_for_a_file_that_is_not_there(tmp_path):
    task = Prosqa(train="nowhere.json", valid=5, test=5, nodes=8, min_steps=1, max_steps=2)
    found = task_rows("graphs", task, WORDS, None, tmp_path)
    assert found.sizes == {"train": 17886, "valid": 5, "test": 5}
    assert len(found.rows["train"]) == 64
