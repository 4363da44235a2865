"""The quick form of every preset, from its first job to its report, without a network."""

import json
import os
from dataclasses import replace

import pytest

from copra.experiment.shipped import presets
from helpers.copra_run import copra_run

LARGE = {
    "all-methods",
    "depth-vs-width",
    "depth-vs-width-arithmetic",
    "depth-vs-width-controls",
    "gpt2-methods",
    "llama-3.2-1b-methods",
    "pruning-lab",
}
"""Presets whose quick form has more than a hundred jobs, which take minutes."""
# Those in config/gsm8k/ are second files, for other presets.
NAMES = [name for name in presets() if "/" not in name]


@pytest.fixture
def gsm8k(tmp_path):
    """A folder for $COPRA_DATA, with rows in the form of GSM8K."""
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(200)), ("test", range(200, 230))):
        rows = [
            {"question": f"What is {n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
            for n in numbers
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder.parent


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_of_a_preset_runs_to_its_end(unstarted, tmp_path, gsm8k, name):
    if name in LARGE and os.environ.get("COPRA_PRESETS") != "all":
        pytest.skip("has more than a hundred jobs: COPRA_PRESETS=all runs it too")
    run = replace(unstarted, environment={**unstarted.environment, "COPRA_DATA": str(gsm8k)})
    run = run.empty(tmp_path / "run")
    copra_run(run, name, "--quick", seconds=1800)
    assert list(run.folder.glob("results/*-quick/report.html"))


def test_the_large_ones_are_presets():
    assert set(NAMES) >= LARGE
