"""A run of a task, a method and a metric of another package, and what a change of its code repeats."""

from dataclasses import replace

import pytest

from copra.utils.files import read_json, read_sealed_parquet
from helpers.lab import BLOCKS, SETTINGS, install
from helpers.tiny import TRAINING

NODE = "llama@0+cot+narrow+late"
EVALUATION = f"results/config/evaluations/{NODE}/metrics.json"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of the installed package."""
    return install(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, unstarted, lab):
    """A run to the evaluation of a model that was made with all three."""
    environment = {**unstarted.environment, **SETTINGS, "PYTHONPATH": f"{unstarted.code / 'src'}:{lab}"}
    run = replace(unstarted, folder=tmp_path_factory.mktemp("made"), environment=environment)
    run.configure(
        tasks__sums={"kind": "parity", "bits": 8, "train": 60, "valid": 20, "test": 20},
        steps={
            "cot": {"kind": "cot", "training": TRAINING},
            "narrow": {"kind": "prune", "unit": "heads", "metric": "fisher", "budget": {"fraction": 0.5}},
            "late": {"kind": "late_cot", "skip": 4, "training": TRAINING},
        },
        recipes=[["cot", "narrow", "late"]],
        reference=None,
        evaluation={"max_new_tokens": 4},
    )
    run.snakemake(EVALUATION)
    return replace(run, options=(EVALUATION,))


def test_a_model_is_trained_scored_pruned_and_asked(made):
    assert read_json(made.folder / EVALUATION)["n"] == 20
    scores = read_sealed_parquet(made.results / "scores" / "llama@0+cot" / "cot" / "passes.fisher.parquet")
    assert scores.groupby("unit").size().to_dict() == {"head": 8, "kv_group": 4, "neuron": 64}
    assert set(scores["metric"]) == {"fisher"}
    assert (scores["score"] >= 0).all()
    plan = read_json(made.results / "plans" / "llama@0+cot+narrow.json")
    assert (plan["metric"], plan["counts"]["heads"]) == ("fisher", {"before": 8, "after": 4})
    assert read_json(made.results / "models" / NODE / "copra.json")["method"] == "late_cot"


def test_a_change_of_their_code_repeats_what_they_took_part_in(made, lab):
    (lab / "lab.py").write_text(f"# A comment.\n{BLOCKS['python']}")
    install(
        lab,
        {"copra.tasks": {"riddles": "other:Parity"}},
        BLOCKS["python"].replace("parity", "riddles"),
        "other",
        "o",
    )
    assert made.would_run() == set()
    (lab / "lab.py").write_text(BLOCKS["python"].replace(".square()", ".abs()"))
    assert {
        "Preparing the test split of task sums",
        "Scoring llama@0+cot on objective cot: passes.fisher",
        f"Training {NODE}",
    } <= made.would_run()
