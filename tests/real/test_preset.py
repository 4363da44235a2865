"""The preset of the real model from its rows to its table, with a dozen rows and steps."""

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml

from copra.utils.files import read_json

ROOT = Path(__file__).parents[2]
FEW = {"steps": 2, "batch_size": 2, "warmup_steps": 1, "num_validations": 1}


def test_the_preset_runs_to_its_table(place, model, tmp_path):
    changes = {
        "bases": {"smollm2": {"path": model}},
        "tasks": {
            "gsm8k": {
                "source": "files",
                "validation_rows": 4,
                **{split: str(place.folder / f"{split}.jsonl") for split in ("train", "test")},
            }
        },
        # Budgets are those of the base, of which the layers that went were a quarter.
        "steps": {name: {"training": FEW} for name in ("cot", "coconut")}
        | {"width-75": {"budget": {"flops": 0.5}}},
        # The whole grid is the same rules again and again.
        "recipes": [["drop-quarter", "cot"], ["drop-quarter", "width-75", "cot", "coconut"]],
        "reference": "smollm2+drop-quarter+cot",
        "evaluation": {"max_new_tokens": 4},
        "latency": {"questions": 1, "batch_size": 2, "repetitions": 1, "forced_tokens": 2},
        "compute": {"precision": "float32", "threads": 1, "gpu": 0},
        "importance": {"rows": 4, "batch_size": 4},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(changes))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    command += ["--configfile", ROOT / "config" / "smollm2-135m.yaml", file, "--cores", "1"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    table = pandas.read_parquet(
        tmp_path / "results" / "smollm2-135m" / "tables" / "accuracy_vs_flops.parquet"
    )
    assert list(table["layers"]) == [23, 23]
    assert table["neurons"][0] == 23 * 1536
    assert table["neurons"][1] < table["neurons"][0]
    assert table["neurons"][1] % 64 == 0
    plan = read_json(tmp_path / "results" / "smollm2-135m" / "plans" / "smollm2+drop-quarter+width-75.json")
    assert plan["flops"]["ratio"] == pytest.approx(0.5, abs=0.005)
    assert list(table["latents"]) == [0, 3]
    assert table["flops"].is_monotonic_decreasing
    assert set(table["precision"]) == {"float32"}
