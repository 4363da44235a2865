"""First configs for rows of users: columns are found, and the config is legal and reads the rows."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from copra.cli import main
from copra.commands.experiment import workflow_of
from copra.experiment.starter import find_columns
from copra.utils.errors import CopraError

STEPS = [
    {
        "Problem": f"What is {n} and {n}?",
        "solution": f"{n} + {n} = {2 * n}.\nSo {2 * n}.",
        "Answer": f"{2 * n}",
    }
    for n in range(40)
]
GSM8K = [{"question": row["Problem"], "answer": f"{row['solution']}\n#### {row['Answer']}"} for row in STEPS]
TEXTS = [{"input": f"Is {n} odd?", "label": "yes" if n % 2 else "no"} for n in range(40)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes rows in a format, and enters their folder; returns the file's name."""
    monkeypatch.chdir(tmp_path)

    def write(rows, name):
        with open(name, "w", newline="") as file:
            if name.endswith(".csv"):
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
@pytest.mark.parametrize(
    ("rows", "columns", "answer_type", "methods"),
    [
        (STEPS, {"question": "Problem", "steps": "solution", "answer": "Answer"}, "number", 6),
        (GSM8K, {"question": "question", "steps": "answer", "answer": "answer"}, "number", 6),
        (TEXTS, {"question": "input", "answer": "label"}, "text", 2),
    ],
)
def test_a_config_for_rows(write, capsys, name, rows, columns, answer_type, methods):
    file = write(rows, name)
    assert main(["init", file, "--base", "somebody/a-model"]) == 0
    assert "mine.yaml is written. Next: copra check mine.yaml" in capsys.readouterr().out
    flow = workflow_of(["mine.yaml"])
    task = flow.experiment.tasks["rows"]
    assert task.columns.model_dump(exclude_none=True) == columns
    assert task.answer_type == answer_type
    assert flow.experiment.bases["base"].path == "somebody/a-model"
    assert len(flow.tree.recipes) == methods
    found = list(task.rows())
    assert {split for split, _ in found} == {"train", "valid", "test"}
    assert sorted(row.answer for _, row in found) == sorted(
        str(row.get("Answer") or row.get("label") or row["answer"].rpartition("#### ")[2]) for row in rows
    )
    assert all(bool(row.steps) == (methods == 6) for _, row in found)


def test_columns_can_be_named(write):
    file = write([{**row, "question": "no"} for row in STEPS], "rows.jsonl")
    assert main(["init", file, "--question", "Problem", "--output", "other.yaml"]) == 0
    with open("other.yaml") as config:
        assert yaml.safe_load(config)["tasks"]["rows"]["columns"]["question"] == "Problem"


def test_what_is_missing_is_told(write, capsys):
    rows = [{"a": f"{n}?", "answer": n} for n in range(20)]
    with pytest.raises(CopraError, match=r"no column looks like the question.*--question.*: a, answer"):
        find_columns(Path(write(rows, "rows.jsonl")), {})
    with pytest.raises(CopraError, match=r"has no column 'b'. It has: a, answer"):
        find_columns(Path(write(rows, "rows.jsonl")), {"question": "b"})
    with pytest.raises(CopraError, match=r"has 5 rows. Give at least 10"):
        find_columns(Path(write(STEPS[:5], "rows.jsonl")), {})
    assert main(["init", write(STEPS, "rows.csv")]) == 0
    capsys.readouterr()
    assert main(["init", "rows.csv"]) == 1
    assert "mine.yaml: exists. Name another file with --output" in capsys.readouterr().err
