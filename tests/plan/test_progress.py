"""What is there and what has failed, by files written by hand."""

from pathlib import Path

import pytest

from copra.plan.jobs import jobs_of
from copra.plan.progress import counted, failed

COT = "llama@0+cot"
BAR = "\r 10%|█         | 1/10 [00:05<00:45,  5.00s/step]"


def put(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_results_are_counted_by_verb(make_workflow, tmp_path):
    jobs = jobs_of(make_workflow())
    put(tmp_path / "models" / COT / "copra.json")
    put(tmp_path / "data" / "sums" / "train.json")
    put(tmp_path / "models" / "somebody else's" / "copra.json")
    found = counted(jobs, tmp_path)
    assert found["train"] == (1, 5)
    assert found["data"] == (1, 3)
    assert found["evaluate"] == (0, 5)
    assert "sweep" not in found
    assert sum(total for _, total in found.values()) == len(jobs)


@pytest.mark.parametrize("config", [True, False])
def test_an_error_in_a_log_without_a_result_is_a_failed_job(make_workflow, tmp_path, config):
    message = "copra train: step 2: loss nan: the training has broken down.\nLower training.learning_rate."
    logs = tmp_path / "logs"
    put(logs / "train" / f"{COT}.log", f"warning\n{BAR}\n{message}\n")
    put(
        logs / "base" / "llama@0.log",
        'Traceback (most recent call last):\n  File "a.py"\nOSError: no space\n',
    )
    put(logs / "evaluate" / f"{COT}.log", BAR)  # still running, or killed
    put(logs / "train" / f"{COT}+no-cot.log", message)  # repeated since
    put(tmp_path / "models" / f"{COT}+no-cot" / "copra.json")
    put(logs / "plan.log", "copra plan: no job of a run")
    found = failed(tmp_path, jobs_of(make_workflow()) if config else None)
    assert [(each.key, each.reason) for each in found] == [
        ("base/llama@0", "OSError: no space"),
        (f"train/{COT}", "copra train: step 2: loss nan: the training has broken down."),
    ]
    assert found[1].log == logs / "train" / f"{COT}.log"


def test_jobs_of_other_experiments_count_only_without_a_config(make_workflow, tmp_path):
    put(tmp_path / "logs" / "train" / "gpt2+cot.1.log", "copra train: no row fits")
    assert failed(tmp_path, jobs_of(make_workflow())) == []
    assert [each.key for each in failed(tmp_path)] == ["train/gpt2+cot.1"]


def test_a_folder_without_logs_has_no_failed_jobs(tmp_path):
    assert failed(tmp_path / "nothing") == []
