"""Optimizer steps per stage: worked out by hand from rows, batches and epochs; and when they are few."""

import json
from pathlib import Path

import pytest

from copra.cli import main
from copra.plan.estimate import Estimate
from copra.plan.forecast import forecast
from copra.plan.lengths import check_lengths, length_warnings, training_lengths
from copra.plan.page import page
from copra.utils.errors import CopraError

pytestmark = pytest.mark.slow

PRETRAINED = {"llama": {"path": "somebody/some-model"}}
GSM8K = {"sums": {"kind": "gsm8k"}}


@pytest.fixture
def lengths_of(make_workflow, tmp_path):
    """Returns the training lengths of the little experiment with changes."""

    def lengths(**changes):
        return training_lengths(Estimate(make_workflow(**changes), tmp_path / "results", cached=set()))

    return lengths


def test_stages_that_train_alike_are_one_line(lengths_of):
    coconut = {
        "kind": "coconut",
        "max_latent_stage": 3,
        "training": {"epochs": 2, "batch_size": 40},
        "overrides": {3: {"steps": 100}},
    }
    found = lengths_of(steps__coconut=coconut, recipes=[["cot", "coconut"], ["coconut"]])
    # 300 rows are 8 batches of 40, and 2.5 batches of 4 are 10 rows.
    assert list(map(str, found)) == [
        "cot: 10 optimizer steps, 0.133 epochs of 300 rows in batches of 4",
        "coconut stages 0 to 2: 16 optimizer steps, 2 epochs of 300 rows in batches of 40",
        "coconut stage 3: 100 optimizer steps, 13.3 epochs of 300 rows in batches of 40",
        "coconut stage 4: 16 optimizer steps, 2 epochs of 300 rows in batches of 40",
    ]


def test_steps_are_a_maximum_where_a_training_may_stop_early(make_workflow, lengths_of):
    """Which both `copra check` and `copra plan` say."""
    stop = {"steps": 20, "batch_size": 4, "stop_early": {"patience": 2}}
    changes = {"steps__cot__training": stop, "recipes": [["cot", "no-cot"]]}
    assert list(map(str, lengths_of(**changes))) == [
        "cot: at most 20 optimizer steps, 0.267 epochs of 300 rows in batches of 4",
        "no-cot: 10 optimizer steps, 0.133 epochs of 300 rows in batches of 4",
    ]
    workflow = make_workflow(**changes)
    text = page(forecast(workflow), workflow, "config.yaml")
    assert "- cot: all steps are taken; stop_early may end them before" in text


@pytest.mark.parametrize(
    ("base", "training", "why"),
    [
        ({}, {"steps": 10}, None),
        ({}, {"epochs": 299, "batch_size": 300}, "training.epochs gives a stage 299 optimizer steps, which"),
        ({}, {"epochs": 300, "batch_size": 300}, None),
        ({"bases": PRETRAINED}, {"steps": 299}, "training.steps gives a stage 299 optimizer steps, which"),
        ({"bases": PRETRAINED}, {"steps": 300}, None),
        ({}, {"epochs": 1, "batch_size": 4, "warmup_steps": 20}, "75 optimizer steps (20 of them warm-up)"),
        ({}, {"epochs": 1, "batch_size": 4, "warmup_ratio": 0.2}, "75 optimizer steps (15 of them warm-up)"),
    ],
)
def test_short_stages_are_warned_of_but_those_of_toys(lengths_of, base, training, why):
    """A model from scratch with explicit steps is a toy."""
    cot = {"kind": "cot", "training": training}
    found = length_warnings(lengths_of(steps__cot=cot, recipes=[["cot"]], **base))
    assert len(found) == (why is not None)
    assert all(line.startswith("steps.cot: ") and why in line for line in found)


def test_a_warm_up_that_outlasts_its_stage_is_refused(make_workflow, tmp_path, monkeypatch, capsys):
    """300 rows are 75 batches of 4, and 150 in two epochs; both steps are one problem."""
    monkeypatch.chdir(tmp_path)
    training = {"epochs": 1, "batch_size": 4, "warmup_steps": 76}

    def check(**changes):
        cot = {"kind": "cot", "training": {**training, **changes}}
        workflow = make_workflow(steps__cot=cot, steps__twin=cot, recipes=[["cot"], ["twin"]])
        config = workflow.experiment.model_dump(mode="json", exclude_unset=True)
        Path("config.yaml").write_text(json.dumps(config))
        return main(["check", "config.yaml"]), capsys.readouterr().err.splitlines()

    assert check(warmup_steps=75) == (0, [])
    assert check(epochs=2) == (0, [])
    code, lines = check()
    assert (code, len(lines)) == (1, 1)
    assert "steps.cot, twin: training.warmup_steps: 76 are more than the 75 optimizer steps of a " in lines[0]


def test_a_warm_up_on_rows_that_nobody_has_counted_is_left_to_its_job(lengths_of):
    """GSM8K's 6,973 rows are 55 batches; how many a data set of somebody's has is not known."""
    training = {"epochs": 1, "batch_size": 128, "warmup_steps": 56}
    changes = {"tasks": GSM8K, "steps__cot": {"kind": "cot", "training": training}, "recipes": [["cot"]]}
    with pytest.raises(CopraError, match=r"steps\.cot: training\.warmup_steps: 56 are more than the 55"):
        check_lengths(lengths_of(**changes))
    check_lengths(lengths_of(**changes, tasks__sums__hub_name="somebody/more-gsm8k"))


def test_a_stage_with_fewer_steps_than_parts_is_refused(lengths_of):
    """A stage removes 8 tokens, one after another; the last stage removes all that are left at once."""

    def lengths(**training):
        icot = {"kind": "icot_si", "tokens_per_stage": 8, "remove_all_beyond": 12, "training": training}
        return lengths_of(steps__icot=icot, recipes=[["icot"]])

    with pytest.raises(CopraError) as caught:
        check_lengths(lengths(steps=7, batch_size=4))
    assert str(caught.value) == (
        "steps.icot: training.steps: a stage goes through 8 parts, and has 7 optimizer steps (0.0933 epochs "
        "of 300 rows in batches of 4). Raise it to 8 steps or more."
    )
    with pytest.raises(CopraError, match=r"steps\.icot: training\.epochs: a stage goes through 8 parts"):
        check_lengths(lengths(epochs=1, batch_size=60))
    check_lengths(lengths(steps=8, batch_size=4))
    (found,) = lengths(steps=8, batch_size=4)
    assert found.stages == (0, 1, 2)


def test_epochs_of_gsm8k_aug_are_not_those_of_gsm8k(lengths_of):
    """Coconut's Llama setting: 385,620 rows are 3,013 batches of 128, and GSM8K's 6,973 are 55."""
    coconut = {"kind": "coconut", "training": {"epochs": 1, "batch_size": 128, "warmup_steps": 20}}
    changes = {
        "bases": PRETRAINED,
        "tasks": GSM8K,
        "steps__coconut": coconut,
        "steps__twin": coconut,
        "recipes": [["coconut"], ["twin"]],
    }
    found = lengths_of(**changes)
    assert [(length.steps, length.stages) for length in found] == [(55, (0, 1, 2, 3, 4))] * 2
    assert length_warnings(found) == [
        "steps.coconut, twin: training.epochs gives a stage 55 optimizer steps (20 of them warm-up), which "
        "are few: 1 epoch of 6,973 rows in batches of 128. Give 300 'steps' or more."
    ]
    found = lengths_of(**changes, tasks__sums__hub_name="whynlp/gsm8k-aug")
    assert {length.steps for length in found} == {3013}
    assert length_warnings(found) == []


def test_a_local_file_says_how_many_rows_there_are(lengths_of, tmp_path):
    for split, number in (("train", 90), ("test", 5)):
        rows = [{"question": f"{n}?", "steps": ["<<1+1=2>>"], "answer": "2"} for n in range(number)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    task = {"kind": "gsm8k", "source": "files", "validation_rows": 10, **files}
    cot = {"kind": "cot", "training": {"epochs": 4, "batch_size": 8}}
    (found,) = lengths_of(tasks={"sums": task}, steps__cot=cot, recipes=[["cot"]])
    assert str(found) == "cot: 40 optimizer steps, 4 epochs of 80 rows in batches of 8"


def test_check_and_plan_print_them(make_workflow, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workflow = make_workflow(
        steps__coconut__training={"epochs": 1, "batch_size": 4}, recipes=[["cot", "coconut"]]
    )
    config = workflow.experiment.model_dump(mode="json", exclude_unset=True)
    Path("config.yaml").write_text(json.dumps(config))
    assert main(["check", "config.yaml"]) == 0
    warning = (
        "steps.coconut: training.epochs gives a stage 75 optimizer steps, which are few: 1 epoch of 300 rows "
        "in batches of 4. Give 300 'steps' or more."
    )
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  llama+cot+coconut",
        "  cot: 10 optimizer steps, 0.133 epochs of 300 rows in batches of 4",
        "  coconut stages 0 to 2: 75 optimizer steps, 1 epoch of 300 rows in batches of 4",
        f"  warning: {warning}",
    ]
    text = page(forecast(workflow), workflow, "config.yaml")
    assert f"\n\nTrainings of few steps:\n- {warning}\n\n" in text
    steps = {line.split()[0]: line.split()[3] for line in text.splitlines() if line.startswith("co")}
    assert {name: steps[name] for name in ("cot", "coconut.0", "coconut.1", "coconut")} == {
        **{"cot": "10", "coconut.0": "75"},
        **{"coconut.1": "75", "coconut": "75"},
    }
