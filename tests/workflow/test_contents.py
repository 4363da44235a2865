"""Files of the user's count by their content: neither when they were written nor where they lie matters."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import yaml

from copra.tasks import WordSums

TRAINING = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "num_validations": 1}
LONG_AGO = 1_700_000_000


def write_rows(file: Path, rows) -> None:
    """JSON lines as GSM8K has them."""
    lines = [
        {"question": row.question, "answer": "\n".join([*row.steps, f"#### {row.answer}"])} for row in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def config(place: Path) -> dict:
    """An experiment on a task, a base and examples that lie in a folder."""
    files = {split: str(place / f"{split}.jsonl") for split in ("train", "test")}
    return {
        "task": "sums",
        "tasks": {
            "sums": {"kind": "gsm8k", "source": "files", "steps": "sentences", "validation_rows": 8, **files}
        },
        "base": "local",
        "bases": {"local": {"path": str(place / "base")}},
        "steps": {
            "cot": {"kind": "cot", "training": TRAINING},
            "ask": {"kind": "few_shot", "num_fewshot": 1, "file": str(place / "examples.jsonl")},
        },
        "recipes": [["cot"], ["cot", "ask"]],
        "evaluation": {"max_new_tokens": 4},
        "latency": None,
    }


def test_contents_count_and_times_and_places_do_not(finished, tmp_path):
    place, run = tmp_path / "place", finished.empty(tmp_path / "run")
    shutil.copytree(finished.results / "models" / "llama@0", place / "base")
    drawn = [row for _, row in WordSums(train=60, valid=8, test=12, min_steps=2, max_steps=2).rows()]
    write_rows(place / "test.jsonl", drawn[:12])
    write_rows(place / "train.jsonl", drawn[12:])
    example = {"question": drawn[40].question, "solution": "4."}
    (place / "examples.jsonl").write_text(json.dumps(example) + "\n")

    def configure(folder):
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config(folder)))

    configure(place)
    run.snakemake()
    assert run.would_run() == set()

    # Newer times, as after `touch` and `cp -r`.
    for folder in (place, run.results):
        for number, file in enumerate(sorted(folder.rglob("*"))):
            os.utime(file, (time.time() + number, time.time() + number))
    assert run.would_run() == set()

    # Another place.
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    configure(moved)
    assert run.would_run() == set()

    def changed(name, content):
        """What runs if an older file is put in the place of one."""
        file, before = moved / name, (moved / name).read_bytes() if (moved / name).exists() else None
        other = moved / "other"
        other.write_bytes(content)
        os.utime(other, (LONG_AGO, LONG_AGO))
        os.replace(other, file)
        found = run.would_run()
        file.unlink() if before is None else file.write_bytes(before)
        return {
            message
            for message in found
            if message.split()[0] in ("Preparing", "Making", "Training", "Prompting")
        }

    train, test = ((moved / f"{split}.jsonl").read_bytes() for split in ("train", "test"))
    models = {"Making base model local", "Training local+cot@0", "Prompting local+cot@0+ask"}
    # The last row is not one of those that are set aside for validation.
    fewer = changed("train.jsonl", train[: train.rstrip().rfind(b"\n") + 1])
    assert fewer - {"Preparing the valid split of task sums"} == models | {
        "Preparing the train split of task sums"
    }
    assert changed("test.jsonl", test[: test.rstrip().rfind(b"\n") + 1]) == {
        "Preparing the test split of task sums"
    }
    assert changed("base/tokenizer.model", b"another tokenizer") == models
    solution = json.dumps({**example, "solution": "5."}) + "\n"
    assert changed("examples.jsonl", solution.encode()) == {"Prompting local+cot@0+ask"}
    assert run.would_run() == set()


def test_missing_files_and_bad_rows_are_told_in_lines_while_planning(unstarted, tmp_path):
    place, run = tmp_path / "place", unstarted.empty(tmp_path / "run")
    place.mkdir()
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config(place)))

    def told():
        printed = run.snakemake("-n", succeeds=False)
        assert "Traceback" not in printed
        return printed.partition("\nError:\n")[2].splitlines()

    names = ("train.jsonl", "test.jsonl", "examples.jsonl", "base")
    found = told()
    assert len(found) == len(names)
    for name, line in zip(names, found, strict=True):
        assert f"{place / name}" in line
        assert "is not there" in line
    drawn = [row for _, row in WordSums(train=30, valid=8, test=8, min_steps=2, max_steps=2).rows()]
    write_rows(place / "train.jsonl", drawn[8:])
    write_rows(place / "test.jsonl", [*drawn[:7], replace(drawn[7], answer="many")])
    (place / "examples.jsonl").touch()
    scratch = {"from_scratch": {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 16}}
    (run.folder / "config.yaml").write_text(yaml.safe_dump({**config(place), "bases": {"local": scratch}}))
    assert told() == [
        "1 row cannot be used:",
        f"  {place / 'test.jsonl'}, row 8: the answer 'many' is not a number",
        "Repair the data, or set bad_rows: drop to go on without them.",
    ]
