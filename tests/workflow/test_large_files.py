"""No result depends on the time of a file that may be large: from 1 MB on Snakemake compares no checksums."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from helpers.tiny import TRAINING

PLANNED = Path(__file__).with_name("planned.py")
# All rules but those of local files, which test_contents.py has.
WHOLE = {
    "steps": {
        "cot": {"kind": "cot", "training": TRAINING},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": TRAINING},
        "groups": {"kind": "prune", "unit": "kv_groups", "metric": "taylor", "budget": {"fraction": 0.5}},
        "ask": {"kind": "few_shot", "num_fewshot": 1},
        "int8": {"kind": "quantize", "weights": "int8"},
    },
    "recipes": [["cot", "groups", "coconut"], ["cot", "ask"], ["cot", "int8"]],
    "reference": "llama+cot+ask",
    "curves": {
        "layers": {
            "model": "llama+cot",
            "unit": "layers",
            "metrics": ["cosine", "loss"],
            "remove": [1],
        }
    },
    "latency": {},
    "evaluation": {"stages": True, "latents": [1], "lens": 1, "max_new_tokens": 8},
}
LARGE = {
    "data": r"/data/.+\.parquet$",
    "weights": r"\.safetensors$",
    "log": r"/training\.jsonl$",
    "scores": r"/scores/.+\.parquet$",
    "predictions": r"/predictions\.parquet$",
}
WITHOUT_LARGE = {"data", "export", "page"}


def kinds(files) -> set[str]:
    """The kinds of large files among some files."""
    return {kind for kind, pattern in LARGE.items() for file in files if re.search(pattern, file)}


@pytest.fixture(scope="module")
def jobs(unstarted) -> list[dict]:
    """The jobs of a dry run as `planned.py` prints them, but for `rule all`, which makes nothing."""
    run = unstarted.empty(unstarted.folder / "large-files")
    run.configure(**WHOLE)
    command = run.command("-n", "--quiet")
    command["args"][1:3] = [str(PLANNED)]
    printed = subprocess.run(**command, capture_output=True, text=True, timeout=600)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    found = [line for line in printed.stdout.splitlines() if line.startswith("[")]
    return [job for job in json.loads(found[-1]) if job["rule"] != "all"]


def test_times_of_large_files_do_not_count(jobs):
    assert {(job["rule"], kind) for job in jobs for kind in kinds(job["timed"])} == set()


def test_all_kinds_of_large_files_are_read(jobs):
    assert set().union(*(kinds(job["untimed"]) for job in jobs)) == set(LARGE)
    readers = {job["rule"] for job in jobs if kinds(job["untimed"])}
    assert {job["rule"] for job in jobs} - readers == WITHOUT_LARGE


def test_each_large_table_has_its_small_file_beside_it(jobs):
    for job in jobs:
        tables = [file for file in job["untimed"] if kinds([file]) & {"data", "scores"}]
        assert {str(Path(file).with_suffix(".json")) for file in tables} <= set(job["timed"]), job["rule"]
