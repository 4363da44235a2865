import copy

import pytest

from copra.experiment.workflow import Workflow
from helpers.tiny import DROP, SIZES

TRAINING = {"steps": 10, "batch_size": 4, "num_validations": 1}
CONFIG = {
    "task": "sums",
    "tasks": {"sums": {"kind": "word_sums", "train": 300, "valid": 40, "test": 60}},
    "base": "llama",
    "bases": {"llama": {"from_scratch": SIZES | {"max_position_embeddings": 64}}},
    "steps": {
        "cot": {"kind": "cot", "training": TRAINING},
        "no-cot": {"kind": "no_cot", "training": TRAINING},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": TRAINING},
        "drop-1": DROP,
        "ask": {"kind": "few_shot", "num_fewshot": 2},
    },
    "recipes": [["cot", "no-cot"], ["cot", "drop-1", "coconut"], ["cot", "ask"]],
    "evaluation": {"max_new_tokens": 8},
    "latency": None,
}


@pytest.fixture
def make_workflow(tmp_path, monkeypatch):
    """Makes the little experiment, with values set by path as in steps__cot__kind="cot"."""
    # What a workflow computes of files it keeps below the working directory.
    monkeypatch.chdir(tmp_path)

    def make(**changes) -> Workflow:
        config = copy.deepcopy(CONFIG)
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = config
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        return Workflow(config, "config.yaml")

    return make
