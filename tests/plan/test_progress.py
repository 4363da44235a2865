"""What is there and what has failed, by files written by hand."""

from pathlib import Path

import pytest

from copra.plan.progress import failed_jobs, finished_results

COT = "llama@0+cot"
BAR = "\r 10%|█         | 1/10 [00:05<00:45,  5.00s/step]"


def put(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_results_are_counted_by_folder(make_workflow, tmp_path):
    workflow = make_workflow()
    put(tmp_path / "models" / COT / "copra.json")
    put(tmp_path / "tables" / "accuracy_vs_flops.csv")
    put(tmp_path / "models" / "somebody else's" / "copra.json")
    found = finished_results(workflow, tmp_path)
    # A manifest and weights each; a table and its three texts each.
    assert found["models"] == (1, 2 * len(workflow.tree.nodes))
    assert found["tables"] == (1, 2 * 4)
    assert found["scores"] == (0, 2)


@pytest.mark.parametrize("config", [True, False])
def test_an_error_at_the_end_of_a_log_is_a_failed_job(make_workflow, tmp_path, config):
    message = "copra train: step 2: loss nan: the training has broken down.\nLower training.learning_rate."
    logs = tmp_path / "logs"
    put(logs / "train" / f"{COT}.log", f"warning\n{BAR}\n{message}\n")
    put(
        logs / "base" / "llama@0.log",
        'Traceback (most recent call last):\n  File "a.py"\nOSError: no space\n',
    )
    put(logs / "latency.log", "copra latency: no space")
    put(logs / "evaluate" / f"{COT}.log", BAR)  # still running, or killed
    put(logs / "plan.log", "copra plan: no job of a run")
    put(logs / "train" / "llama@0+old.1.log", "copra train: no row fits")
    found = failed_jobs(tmp_path, make_workflow() if config else None)
    assert [(each.key, each.reason) for each in found if each.key != "train/llama@0+old.1"] == [
        ("base/llama@0", "OSError: no space"),
        ("latency", "copra latency: no space"),
        (f"train/{COT}", "copra train: step 2: loss nan: the training has broken down."),
    ]
    # A model of another experiment counts only without a config.
    assert len(found) == (3 if config else 4)
    assert failed_jobs(tmp_path / "nothing") == []
