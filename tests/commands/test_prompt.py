"""copra prompt: the parent's weights, asked by worked examples."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pytest

from copra.commands import prompt
from copra.data.sequences import GenerationSpec
from copra.data.tokenization import markers_of
from copra.evaluation.accuracy import predictions
from copra.methods.few_shot import FewShot
from copra.models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from copra.tasks.prepare import read_rows
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, file_sha256
from helpers.manifests import provenance


@pytest.fixture
def place(tmp_path, data, word_base):
    """A folder with data and a checkpoint that answers otherwise."""
    made = word_base(tokenizer="bpe", vocabulary=300, max_position_embeddings=256)
    decoding = GenerationSpec((3,), 2, "hidden", 4, (5,))
    known = provenance(
        "tiny@0+cot", method="cot", lineage=[{"step": "cot"}], training_flops=77, decoding=decoding
    )
    save_checkpoint(tmp_path / "parent", made.model, made.tokenizer, known, {"training.jsonl": "log"})
    return tmp_path


def ask(place, worked=None, **settings):
    parser = ArgumentParser()
    prompt.arguments(parser)
    value = {
        "node": "tiny@0+cot+ask",
        "prompt": {"kind": "few_shot", "num_fewshot": 3, **settings},
        "worked": worked,
    }
    words = ["--settings", json.dumps(value), "--parent", str(place / "parent" / MANIFEST)]
    words += ["--data", str(place / "data" / "train.parquet"), "--output", str(place / "asked" / MANIFEST)]
    prompt.run(parser.parse_args(words))
    return load_checkpoint(place / "asked")


def test_a_prompt_changes_the_manifest_alone(place):
    parent, asked = load_checkpoint(place / "parent"), ask(place)
    assert (place / "asked" / WEIGHTS).read_bytes() == (place / "parent" / WEIGHTS).read_bytes()
    assert not (place / "asked" / "training.jsonl").exists()
    prompting = FewShot(kind="few_shot", num_fewshot=3)
    decoding = prompting.decoding(
        read_rows(place / "data" / "train.parquet"), markers_of(parent.tokenizer).latent
    )
    step = {
        "step": "ask",
        "method": "few_shot",
        "prompt": prompting.canonical(),
        "worked": None,
        "parent": parent.manifest.weights.sha256,
    }
    made_by = {
        "settings": {
            "node": "tiny@0+cot+ask",
            "prompt": {"kind": "few_shot", "num_fewshot": 3},
            "worked": None,
        },
        "files": sorted(map(file_sha256, (place / "parent" / MANIFEST, place / "data" / "train.json"))),
    }
    changes = {"node": "tiny@0+cot+ask", "method": "few_shot", "decoding": decoding, "made_by": made_by}
    changes |= {"files": parent.files, "lineage": [{"step": "cot"}, step]}
    assert asked.manifest == parent.manifest.model_copy(update=changes)


def test_a_prompted_checkpoint_answers(place, rows):
    asked = ask(place, answer="strict")
    decoding = asked.decoding
    assert decoding.prompting.exemplars.count("The answer is") == 3
    table = predictions(asked, decoding, rows[2::3], 5, "number")
    assert (table["flops_cached_prompt"] < table["flops"]).all()


def test_a_tasks_own_examples_stand_before_the_question(place):
    worked = {"task": "gsm8k", "sha256": "of the file"}
    asked = ask(place, worked, answer="harness-flexible", max_new_tokens=2)
    assert asked.decoding.prompting.exemplars.startswith("Q: A baker puts 12 rolls on each of 4 trays.")
    assert asked.manifest.lineage[-1]["worked"] == worked


def test_a_prompt_has_a_rule_and_a_limit_of_its_own(place, rows, monkeypatch):
    """ "7.0" is 7 under copra's rule, and not under the harness' own."""
    texts = iter(["The answer is 7.0. Q: 8", "7", "7.0"] * 2)
    rows = [replace(row, answer="7") for row in rows[2:5]]
    found = {}
    for rule in ("flexible", "harness-flexible"):
        asked = ask(place, answer=rule, max_new_tokens=2)
        monkeypatch.setattr(asked.tokenizer, "batch_decode", lambda *_, **__: [next(texts) for _ in range(3)])
        table = predictions(asked, asked.decoding, rows, 5, "number")
        assert table["n_generated"].max() == 2
        found[rule] = list(zip(table["extracted"], table["correct"], strict=True))
    assert found == {
        "flexible": [("7.0.", True), ("7", True), ("7.0", True)],
        "harness-flexible": [("7.0.", False), ("7", True), ("7.0", False)],
    }


def test_another_seed_asks_with_other_examples(place):
    first, second, again = (ask(place, seed=seed).manifest for seed in (0, 1, 0))
    assert first == again
    assert first.decoding != second.decoding
    assert first.weights == second.weights


def test_too_few_rows_leave_no_checkpoint(place):
    with pytest.raises(CopraError, match="9 examples are asked for and there are 8"):
        ask(place, num_fewshot=9)
    assert not (place / "asked").exists()
