"""Results without Snakemake's records, or put in the place of others: none is taken for what it is not."""

import shutil

import pytest
from test_invalidation import (
    ACCURACY,
    ALL_EVALUATIONS,
    COT,
    EVERYTHING_AFTER_COT,
    EVERYTHING_AFTER_DATA,
    LAST_TRAINING,
    NO_COT,
    preparing,
    trained,
)


@pytest.fixture
def fetched(finished, tmp_path):
    """The results of the finished run as they are fetched from elsewhere: without Snakemake's records."""
    run = finished.empty(tmp_path / "fetched")
    shutil.copytree(finished.results, run.results)
    run.configure()
    return run


def test_unchanged_settings_run_nothing(fetched):
    assert fetched.would_run() == set()


def test_changed_settings_run_what_depends_on_them(fetched, tmp_path):
    changes = {
        "data": ({"tasks__sums__train": 299}, EVERYTHING_AFTER_DATA | {preparing("train")}),
        "test set": ({"tasks__sums__test": 50}, ALL_EVALUATIONS | {preparing("test")}),
        "late": ({"steps__no_cot__training__learning_rate": 1e-3}, LAST_TRAINING),
        "early": ({"steps__cot__training__learning_rate": 1e-3}, EVERYTHING_AFTER_COT | trained(COT)),
        "reference": ({"reference": "llama+cot+no_cot"}, ACCURACY),
    }
    for name, (values, expected) in changes.items():
        changed = fetched.with_config(tmp_path / f"{name}.yaml", name="config", **values)
        assert changed.would_run() == expected


def test_a_model_in_the_place_of_another_is_made_again(run, finished, tmp_path):
    """As after a copy that keeps times: Snakemake's records hold for the models that were there before."""
    other = finished.copied(tmp_path / "other")
    other.configure(steps__no_cot__training__learning_rate=1e-3)
    other.snakemake()
    theirs = other.results / "models" / NO_COT
    ours = run.results / "models" / NO_COT
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    assert run.would_run() == LAST_TRAINING
    # The model is the one that is asked for now, but not the one that was evaluated and drawn.
    run.configure(steps__no_cot__training__learning_rate=1e-3)
    shutil.rmtree(run.folder / ".snakemake")
    assert run.would_run() == LAST_TRAINING - trained(NO_COT)
