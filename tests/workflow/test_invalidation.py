"""What a change runs again: exactly the jobs that depend on it, told by the messages of a dry run."""

import os
import random
import shutil

import pytest

COT = "llama@0+cot"
NO_COT = f"{COT}+no_cot"
LAYERS = f"{COT}+drop-1"
GROUPS = f"{LAYERS}+groups-1"
COCONUT = f"{GROUPS}+coconut"

ACCURACY = {
    "Computing table accuracy_vs_flops: accuracy against FLOPs",
    "Writing table accuracy_vs_flops as CSV, Markdown and LaTeX",
    "Drawing figure accuracy_vs_flops: accuracy against FLOPs",
}
BEFORE = {
    "Computing table before_fine_tuning: accuracy right after pruning",
    "Writing table before_fine_tuning as CSV, Markdown and LaTeX",
}
CURVES = {"Drawing figure training_curves: the training curves"}
CURRICULUM = {"Drawing figure curriculum: accuracy after each stage"}
SCORES = {f"Scoring {node} on objective cot: passes" for node in (COT, LAYERS)}
SCORE_FIGURES = {
    f"Drawing figure {name}/{node}/cot: the {name.replace('_', ' ')}"
    for name in ("layer_distances", "head_importance")
    for node in (COT, LAYERS)
}


def preparing(split):
    return f"Preparing the {split} split of task sums"


def evaluated(*nodes):
    return {f"Evaluating {node}" for node in nodes}


def trained(*nodes):
    return {f"Training {node}" for node in nodes}


def pruned(*nodes):
    return {f"{word} {node}" for node in nodes for word in ("Selecting the cut of", "Pruning to")}


STAGES = (f"{COCONUT}.0", f"{COCONUT}.1", COCONUT)
AFTER_PRUNING = (
    evaluated(LAYERS, GROUPS, *STAGES) | trained(*STAGES) | ACCURACY | BEFORE | CURRICULUM | CURVES
)
LAST_TRAINING = trained(NO_COT) | evaluated(NO_COT) | ACCURACY | CURVES
ALL_EVALUATIONS = evaluated(COT, NO_COT, LAYERS, GROUPS, *STAGES) | ACCURACY | BEFORE | CURRICULUM
EVERYTHING_AFTER_SCORES = SCORES | SCORE_FIGURES | pruned(LAYERS, GROUPS) | AFTER_PRUNING
EVERYTHING_AFTER_COT = ALL_EVALUATIONS | EVERYTHING_AFTER_SCORES | LAST_TRAINING
EVERYTHING_AFTER_DATA = EVERYTHING_AFTER_COT | trained(COT) | {"Making base model llama@0"}
LONGER = {"kind": "word_sums", "train": 1, "valid": 1, "test": 9, "min_steps": 5}
CHANGES = {
    "the data": ({"tasks__sums__train": 299}, EVERYTHING_AFTER_DATA | {preparing("train")}),
    "the test set": ({"tasks__sums__test": 50}, ALL_EVALUATIONS | {preparing("test")}),
    "more of the validation set": (
        {"tasks__sums__valid": 50},
        EVERYTHING_AFTER_DATA | {preparing("valid")},
    ),
    "another seed leaves the data": (
        {"seeds": [1]},
        {message.replace("llama@0", "llama@1") for message in EVERYTHING_AFTER_DATA},
    ),
    "the learning rate of a last step": ({"steps__no_cot__training__learning_rate": 1e-3}, LAST_TRAINING),
    "two values swapped between two settings": (
        {"steps__no_cot__training__weight_decay": 0.5, "steps__no_cot__training__max_grad_norm": 0.25},
        LAST_TRAINING,
    ),
    "the learning rate of a first step": (
        {"steps__cot__training__learning_rate": 1e-3},
        EVERYTHING_AFTER_COT | trained(COT),
    ),
    "a late stage leaves the stages before it": (
        {"steps__coconut__overrides": {1: {"learning_rate": 1e-3}}},
        trained(f"{COCONUT}.1", COCONUT)
        | evaluated(f"{COCONUT}.1", COCONUT)
        | ACCURACY
        | CURRICULUM
        | CURVES,
    ),
    "how answers are decoded": ({"evaluation__batch_size": 7}, ALL_EVALUATIONS),
    "other numbers of latents": (
        {"evaluation__latents": [0, 1]},
        {
            f"Evaluating {COCONUT} with other numbers of latents",
            "Computing table accuracy_vs_latents: accuracy against the number of latents",
            "Writing table accuracy_vs_latents as CSV, Markdown and LaTeX",
            "Drawing figure accuracy_vs_latents: accuracy against the number of latents",
        },
    ),
    "another task to ask": (
        {"tasks__longer": LONGER, "evaluation__tasks": ["longer"]},
        {
            "Preparing the test split of task longer",
            *(f"Evaluating longer/{end}" for end in (COT, NO_COT, COCONUT)),
            "Computing table accuracy_by_task: accuracy on each task",
            "Writing table accuracy_by_task as CSV, Markdown and LaTeX",
            "Drawing figure accuracy_by_task: accuracy on each task",
        },
    ),
    "latents of other sources": (
        {"evaluation__latents_from": ["other"]},
        {
            f"Evaluating {COCONUT} with latents of other sources",
            "Computing table latent_sources: accuracy with latents of other sources",
            "Writing table latent_sources as CSV, Markdown and LaTeX",
            "Drawing figure latent_sources: accuracy with latents of other sources",
        },
    ),
    "a look into latents": (
        {"evaluation__lens": 2},
        {
            f"Looking into the latents of {COCONUT}",
            "Computing table latent_lens: the likeliest tokens of latents",
            "Writing table latent_lens as CSV, Markdown and LaTeX",
            f"Drawing figure latent_lens/{COCONUT}: the likeliest tokens of latents",
        },
    ),
    "how units are scored": ({"importance__rows": 16}, EVERYTHING_AFTER_SCORES),
    "the budget of a pruning leaves its scores": (
        {"steps__groups-1__budget": {"count": 1}},
        pruned(GROUPS)
        | evaluated(GROUPS, *STAGES)
        | trained(*STAGES)
        | ACCURACY
        | BEFORE
        | CURRICULUM
        | CURVES,
    ),
    "a recipe added": (
        {"recipes": [["cot"], ["cot", "no_cot"], ["cot", "drop-1", "groups-1", "coconut"], ["no_cot"]]},
        trained("llama@0+no_cot") | evaluated("llama@0+no_cot") | ACCURACY | CURVES,
    ),
    "a recipe taken away": (
        {"recipes": [["cot"], ["cot", "drop-1", "groups-1", "coconut"]]},
        ACCURACY | CURVES,
    ),
    "the reference": ({"reference": "llama+cot+no_cot"}, ACCURACY),
    "settings that are no part of a result": (
        {
            "compute__save_every_seconds": 0,
            "compute__memory_mb": 3000,
            "compute__runtime_minutes": 30,
            "tracking": "tensorboard",
        },
        set(),
    ),
    "the order of keys, and defaults written out": (
        {
            "steps__no_cot__training": {
                "schedule": "constant",
                "max_grad_norm": 0.5,
                "weight_decay": 0.25,
                "num_validations": 1,
                "learning_rate": 0.003,
                "batch_size": 16,
                "steps": 6,
            }
        },
        set(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_config_runs_what_depends_on_it_and_nothing_else(finished, tmp_path, change):
    values, expected = CHANGES[change]
    assert finished.with_config(tmp_path / "config.yaml", **values).would_run() == expected


def test_the_report_is_written_again_for_each_change_that_it_shows(run, tmp_path):
    for change in ({}, {"compute__threads": 2}):
        changed = run.with_config(tmp_path / "config.yaml", **change)
        assert ("Writing the report" in changed.would_run_with_report()) == bool(change)
    (run.results / "tables" / "before_fine_tuning.parquet").unlink()
    assert "Writing the report" in run.would_run_with_report()


def test_a_deleted_table_is_made_again_with_all_that_depends_on_it(run):
    (run.results / "tables" / "before_fine_tuning.parquet").unlink()
    assert run.would_run() == BEFORE


def test_a_deleted_artifact_on_the_way_is_made_again_with_all_that_depends_on_it(run):
    (run.results / "evaluations" / NO_COT / "predictions.parquet").unlink()
    assert run.would_run() == evaluated(NO_COT) | ACCURACY
    shutil.rmtree(run.results / "models" / NO_COT)
    assert run.would_run() == LAST_TRAINING


def test_fresh_times_alone_run_nothing(run):
    """As after a copy that keeps no times: Snakemake's records know the checksums of small inputs."""
    files = sorted(path for path in run.results.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    now = run.folder.stat().st_mtime
    for second, file in enumerate(files):
        os.utime(file, (now - second, now - second))
    assert run.would_run() == set()


def test_results_without_snakemakes_records_are_kept_unless_their_times_are_out_of_order(run):
    """As after a download of results alone: equal times are in order, so nothing runs."""
    shutil.rmtree(run.folder / ".snakemake")
    files = [path for path in run.results.rglob("*") if path.is_file()]
    now = run.folder.stat().st_mtime
    for file in files:
        os.utime(file, (now, now))
    assert run.would_run() == set()
    for large in (
        "data/*/*.parquet",
        "models/*/*.safetensors",
        "models/*/*.jsonl",
        "evaluations/*/*.parquet",
    ):
        for file in run.results.glob(large):
            os.utime(file, (now + 9, now + 9))
    assert run.would_run() == set()
    os.utime(run.results / "data" / "sums" / "train.json", (now + 9, now + 9))
    assert run.would_run() >= {"Making base model llama@0"} | EVERYTHING_AFTER_COT
    assert not {preparing(split) for split in ("train", "valid", "test")} & run.would_run()


def edit(run, file, old, new):
    path = run.code / "src" / "copra" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_edited_comment_runs_nothing_and_an_edited_statement_what_depends_on_it(edited):
    for file in ("training/loop.py", "report/figures.py", "pruning/surgery.py"):
        edit(edited, file, "\nfrom ", "\n# A comment.\nfrom ")
    assert edited.would_run() == set()
    edit(edited, "report/figures.py", "\nfrom ", "\nANYTHING = 1\nfrom ")
    figures = CURVES | CURRICULUM | SCORE_FIGURES
    figures |= {"Drawing figure accuracy_vs_flops: accuracy against FLOPs"}
    assert edited.would_run() == figures
    edit(edited, "pruning/surgery.py", "\nfrom ", "\nANYTHING = 1\nfrom ")
    # Scoring cuts too, to see what a model is worth without a unit; so it is all made again.
    assert edited.would_run() == figures | AFTER_PRUNING | pruned(LAYERS, GROUPS) | SCORES
