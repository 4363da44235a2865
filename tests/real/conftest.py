"""A real pretrained model, where COPRA_MODEL names its folder: what random toys hide shows on it."""

import json
import os
from pathlib import Path

import pytest

from copra import cli

MODEL = os.environ.get("COPRA_MODEL")

# Little word problems in the form of GSM8K's rows.
ROW = (
    "{name} has {a} apples and buys {b} bags with {c} apples each. How many apples does {name} have then?",
    "{name} buys {b} * {c} = <<{b}*{c}={bc}>>{bc} apples.\n"
    "Then there are {a} + {bc} = <<{a}+{bc}={sum}>>{sum} apples.\n#### {sum}",
)
NAMES = ("Anna", "Ben", "Chloe", "David", "Emma", "Frank", "Grace", "Henry")


def rows(number: int, first: int) -> str:
    """JSON lines of `number` rows, other ones for another `first`."""
    lines = []
    for i in range(first, first + number):
        values = {"name": NAMES[i % 8], "a": 3 + i, "b": 2 + i % 5, "c": 4 + i % 7}
        values["bc"] = values["b"] * values["c"]
        values["sum"] = values["a"] + values["bc"]
        question, answer = (text.format(**values) for text in ROW)
        lines.append(json.dumps({"question": question, "answer": answer}))
    return "\n".join(lines) + "\n"


class Place:
    """A folder in which copra's commands are run one after the other, in this process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def copra(self, verb: str, settings: dict, **files) -> Path:
        """Run a command with its settings; `files` are named as in its options. Returns its output."""
        words = [verb, "--settings", json.dumps(settings)]
        for option, name in files.items():
            words += [f"--{option}", str(self.folder / name)]
        assert cli.main(words) == 0
        return self.folder / files["output"]


@pytest.fixture(scope="session")
def model() -> str:
    if not MODEL:
        pytest.skip("COPRA_MODEL does not name the folder of a pretrained model")
    return MODEL


@pytest.fixture(scope="session")
def place(tmp_path_factory, model) -> Place:
    """A folder with the splits of a task and the model as a base."""
    place = Place(tmp_path_factory.mktemp("real"))
    (place.folder / "train.jsonl").write_text(rows(16, 0))
    (place.folder / "test.jsonl").write_text(rows(4, 20))
    task = {"kind": "gsm8k", "source": "files", "validation_rows": 4}
    task |= {split: str(place.folder / f"{split}.jsonl") for split in ("train", "test")}
    place.copra("data", {"task": task}, output="data")
    base = {"path": model}
    place.copra("base", {"node": "real", "base": base, "seed": None}, data="data", output="real")
    return place


@pytest.fixture(scope="session")
def trained(place) -> dict[str, Path]:
    """Checkpoints after two steps of chain of thought, and of Coconut's last stage and CODI after that."""
    from copra.methods import METHODS

    training = {
        "learning_rate": 1e-4,
        "steps": 2,
        "batch_size": 2,
        "num_validations": 1,
        "validation_rows": 2,
    }

    def train(parent: str, kind: str, number: int, **settings) -> Path:
        method = METHODS[kind].model_validate({"kind": kind, "training": training, **settings})
        stage = method.resolved_stages()[number].canonical()
        value = {"node": f"{parent}+{kind}", "method": kind, "stage": stage, "training": training, "seed": 0}
        return place.copra("train", value, parent=parent, data="data", state="state", output=value["node"])

    return {
        "cot": train("real", "cot", 0),
        "coconut": train("real+cot", "coconut", 3, max_latent_stage=2),
        "codi": train("real+cot", "codi", 0, latents=2),
    }
