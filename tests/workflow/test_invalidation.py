"""What a change makes run again: exactly that, seen by dry runs on a finished run."""

import os
import shutil
from dataclasses import replace

import pytest

pytestmark = pytest.mark.workflow

COT = "llama@0+cot"
NO_COT = "llama@0+cot+no_cot"
LAYERS = "llama@0+cot+layers-1"
GROUPS = "llama@0+cot+layers-1+groups-1"
COCONUT = [f"{GROUPS}+coconut{stage}" for stage in (".0", ".1", "")]
MODELS = [COT, NO_COT, LAYERS, GROUPS, *COCONUT]
RECIPES = [["cot"], ["cot", "no_cot"], ["cot", "layers-1", "groups-1", "coconut"]]

LATENCY = {"Measuring seconds an answer"}
ACCURACY = {
    "Drawing up accuracy against FLOPs",
    "Writing table accuracy_vs_flops as CSV, Markdown and LaTeX",
    "Drawing accuracy against FLOPs",
}
BEFORE = {
    "Drawing up accuracy right after pruning",
    "Writing table before_fine_tuning as CSV, Markdown and LaTeX",
}
CURVES = {"Drawing the training curves"}
CURRICULUM = {"Drawing accuracy after each stage"}
LAYER_FIGURE = {f"Drawing the layer distances of {COT}"}
HEAD_FIGURE = {f"Drawing the head importance of {LAYERS}"}


def training(*models):
    return {f"Training {model}" for model in models}


def evaluating(*models):
    return {f"Evaluating {model}" for model in models}


def pruning(*models):
    """The plan and the surgery of pruned models."""
    return {f"{verb} {model}" for model in models for verb in ("Planning", "Pruning to")}


SCORING = {f"Scoring the layers of {COT}", f"Scoring the kv_groups of {LAYERS}"}
AFTER_NO_COT = evaluating(NO_COT) | LATENCY | ACCURACY | CURVES
AFTER_COCONUT = LATENCY | ACCURACY | CURVES | CURRICULUM
AFTER_PRUNING = training(*COCONUT) | evaluating(LAYERS, GROUPS, *COCONUT) | BEFORE | AFTER_COCONUT
EVERYTHING = (
    {"Preparing task sums", "Making base model llama@0"}
    | training(COT, NO_COT, *COCONUT)
    | evaluating(*MODELS)
    | SCORING
    | pruning(LAYERS, GROUPS)
    | LATENCY
    | ACCURACY
    | BEFORE
    | CURVES
    | CURRICULUM
    | LAYER_FIGURE
    | HEAD_FIGURE
)

CHANGES = {
    "nothing": ({}, set()),
    "the rate of the last step": (
        {"steps__no_cot__training__learning_rate": 1.0e-4},
        training(NO_COT) | AFTER_NO_COT,
    ),
    "two values swapped": (
        {"steps__no_cot__training__weight_decay": 0.5, "steps__no_cot__training__clip_norm": 0.25},
        training(NO_COT) | AFTER_NO_COT,
    ),
    "the rate of a staged step": (
        {"steps__coconut__training": {"steps": 8, "batch_size": 16, "learning_rate": 1.0e-4}},
        training(*COCONUT) | evaluating(*COCONUT) | AFTER_COCONUT,
    ),
    "the rate of the last stage": (
        {"steps__coconut__overrides": {2: {"learning_rate": 1.0e-4}}},
        training(COCONUT[2]) | evaluating(COCONUT[2]) | AFTER_COCONUT,
    ),
    "a budget": (
        {"steps__groups-1__budget": {"count": 2}},
        pruning(GROUPS) | (AFTER_PRUNING - evaluating(LAYERS)),
    ),
    "rows for the scores": (
        {"importance__rows": 16},
        SCORING | LAYER_FIGURE | HEAD_FIGURE | pruning(LAYERS, GROUPS) | AFTER_PRUNING,
    ),
    "the batch of the evaluation": (
        {"evaluation__batch_size": 7},
        evaluating(*MODELS) | ACCURACY | BEFORE | CURRICULUM,
    ),
    "the longest answer": (
        {"evaluation__max_new_tokens": 9},
        evaluating(*MODELS) | LATENCY | ACCURACY | BEFORE | CURRICULUM,
    ),
    "repetitions of the measurement": ({"latency__repetitions": 2}, LATENCY | ACCURACY),
    "the reference": ({"reference": "llama+cot+no_cot"}, ACCURACY),
    "the data": ({"tasks__sums__train": 299}, EVERYTHING),
    "the base": ({"bases__llama__from_scratch__ffn_size": 40}, EVERYTHING - {"Preparing task sums"}),
    "what a job may use": (
        {"compute__memory_mb": 3000, "compute__runtime_minutes": 9, "compute__save_every_seconds": 5},
        set(),
    ),
    "a step that no recipe takes": ({"steps__lowest-1__budget__count": 2}, set()),
    "a recipe more": (
        {"recipes": [*RECIPES, ["cot", "layers-1", "no_cot"]]},
        training(f"{LAYERS}+no_cot") | evaluating(f"{LAYERS}+no_cot") | LATENCY | ACCURACY | CURVES,
    ),
    "a recipe less": ({"recipes": [RECIPES[0], RECIPES[2]]}, LATENCY | ACCURACY | CURVES),
    "another seed": (
        {"seeds": [1]},
        {message.replace("llama@0", "llama@1") for message in EVERYTHING - {"Preparing task sums"}},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_config_reruns_what_depends_on_it(run, name):
    changes, expected = CHANGES[name]
    run.configure(**changes)
    assert run.would_run() == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("models/llama@0+cot+no_cot/model.safetensors", training(NO_COT) | AFTER_NO_COT),
        (f"plans/{GROUPS}.json", pruning(GROUPS) | (AFTER_PRUNING - evaluating(LAYERS))),
        (f"evaluations/{NO_COT}/metrics.json", evaluating(NO_COT) | ACCURACY),
        ("figures/curriculum.png", CURRICULUM),
    ],
)
def test_a_deleted_output_is_made_again_with_what_depends_on_it(run, file, expected):
    (run.folder / "results" / file).unlink()
    assert run.would_run() == expected


def test_new_times_of_all_files_rerun_nothing(finished, tmp_path):
    """As after a copy that does not keep times: what is small is compared by content, weights never."""
    run = replace(finished, folder=tmp_path / "run")
    shutil.copytree(finished.folder, run.folder, copy_function=shutil.copy)
    files = sorted(path for path in (run.folder / "results").rglob("*") if path.is_file())
    for age, file in enumerate(files):  # Inputs newer than outputs as often as not.
        os.utime(file, (2_000_000_000 - age, 2_000_000_000 - age))
    assert run.would_run() == set()


def test_without_snakemakes_records_times_alone_count_and_no_model_is_made_again(finished, tmp_path):
    """As after a clone of the results alone, written in the order in which they were made."""
    run = replace(finished, folder=tmp_path / "run")
    shutil.copytree(finished.folder, run.folder, ignore=shutil.ignore_patterns(".snakemake"))
    assert run.would_run() == set()


def edit(run, file, old, new):
    path = run.code / "src" / "copra" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_comment_in_the_code_reruns_nothing(edited):
    edit(edited, "training/loop.py", "import json\n", "import json  # a comment\n\n# and another\n")
    edit(edited, "pruning/surgery.py", '"""', '"""In other words: ')
    assert edited.would_run() == set()


def test_a_statement_of_the_code_reruns_what_depends_on_it(edited):
    with open(edited.code / "src" / "copra" / "report" / "figures.py", "a") as file:
        file.write("\nANYTHING = 1\n")
    figures = {"Drawing accuracy against FLOPs"} | CURVES | CURRICULUM | LAYER_FIGURE | HEAD_FIGURE
    assert edited.would_run() == figures
    with open(edited.code / "src" / "copra" / "pruning" / "surgery.py", "a") as file:
        file.write("\nANYTHING = 1\n")
    surgery = {f"Pruning to {model}" for model in (LAYERS, GROUPS)}
    replanned = SCORING | pruning(GROUPS) | HEAD_FIGURE - {f"Scoring the layers of {COT}"}
    assert (
        edited.would_run()
        == figures | surgery | (replanned - {f"Scoring the layers of {COT}"}) | AFTER_PRUNING
    )


def test_the_fingerprint_can_be_switched_off(edited):
    edited.configure(code_fingerprint=False)
    assert edited.would_run() == EVERYTHING
