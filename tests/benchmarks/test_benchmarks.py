"""Every benchmark runs through at its smallest size, so that none rots; its figures mean nothing here."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NO_BENCHMARK = {"measuring", "sizes"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark with its shell arguments, in this process; returns what it prints."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def gsm8k(tmp_path, rows):
    """A folder with GSM8K's two files, 16 rows each."""
    for split in ("train", "test"):
        lines = [
            json.dumps(
                {"question": f"{split} {row.question}", "answer": f"{row.steps[0]}\n#### {row.answer}"}
            )
            for row in rows[:16]
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_every_benchmark_is_run_below():
    here = Path(__file__).read_text()
    names = {file.stem for file in FOLDER.glob("*.py")} - NO_BENCHMARK
    assert names == {name for name in names if f'run("{name}"' in here}


@pytest.mark.slow
def test_speed(run):
    printed = run("speed", "--threads", "1", "--size", "tiny").splitlines()
    ratios = [line.split()[-1] for line in printed if line.startswith("  ")]
    assert len([float(ratio) for ratio in ratios]) == 5


@pytest.mark.slow
def test_gpu(run):
    sizes = ("--size", "tiny", "--set", "num_hidden_layers=1", "--batch-size", "4", "--steps", "4")
    decoding = ("--batches", "1", "2", "--tokens", "3", "--backend", "eager")
    parts = ("training", "decoding", "nan", "profile")
    printed = run("gpu", *parts, *sizes, *decoding, "--rows", "8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in printed if line.startswith("| ")]
    assert [row[0] for row in rows[:4]] == ["method", "cot", "no_cot", "coconut, 6 latents"]
    assert all(float(cell) > 0 for row in rows[1:4] for cell in row[2:6])
    assert [row[1:4] for row in rows[5:9]] == [
        ["growing", thought, batch] for batch in "12" for thought in ("none", "6 latents")
    ]
    assert [row[1] for row in rows[9:13]] == ["compiled"] * 4
    assert rows[14][:4] == ["PyTorch's choice", "1", "8", "0"]
    # Operations with their calls, after the table of ten kernels and sizes.
    assert int(rows[-1][1]) > 0
    assert len(rows) == 4 + 9 + 11 + 21


def test_gpu_knows_its_parts(run, capsys):
    with pytest.raises(SystemExit):
        run("gpu", "trainig")
    assert "no such part: trainig" in capsys.readouterr().err


@pytest.mark.slow
def test_scale(run):
    table = [line for line in run("scale", "10").splitlines() if line.startswith("| 10 |")]
    assert len(table) == 1
    # Ten jobs per recipe, and those that all recipes share.
    assert int(table[0].split("|")[2]) > 100


def test_scoring(run, gsm8k):
    options = ("--rows", "2", "--batch-size", "2", "--size", "tiny")
    printed = run("scoring", "--data", str(gsm8k), *options)
    assert "in 2 rows" in printed
    assert "scores in" in printed


def test_a_random_llama_can_be_loaded(run, gsm8k, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    run("random_llama", "--text", str(gsm8k / "train.jsonl"), "--output", str(folder), "--size", "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.config.vocab_size == 512
