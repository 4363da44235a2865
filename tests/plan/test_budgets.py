"""Budgets that cannot be met well are told before anything runs."""

import json
import re

import pytest

from copra.cli import main
from copra.models.published_configs import PUBLISHED_CONFIGS
from copra.plan.budgets import budget_warnings
from copra.plan.estimate import Estimate
from copra.plan.forecast import forecast
from copra.plan.page import page
from copra.utils.errors import CopraError

THREE = {"hidden_size": 24, "layers": 2, "heads": 6, "kv_heads": 3, "intermediate_size": 32}

HALF_OF_THREE = "budget.fraction: 0.5 of 6 KV groups: the nearest legal cut removes 2, 33% less than asked"


def step(unit, metric="taylor", **budget):
    return {"kind": "prune", "unit": unit, "metric": metric, "budget": budget}


@pytest.fixture
def warnings_of(make_workflow, tmp_path):
    """Makes the warnings of one pruning after `cot`, or of several, of a base."""

    def make(*steps, base=None):
        names = [f"smaller-{number}" for number, _ in enumerate(steps)]
        changes = {f"steps__{name}": value for name, value in zip(names, steps, strict=True)}
        bases = {"llama": base or {"from_scratch": THREE}}
        workflow = make_workflow(**changes, bases=bases, recipes=[["cot", *names]])
        return budget_warnings(Estimate(workflow, tmp_path, cached=set()))

    return make


@pytest.fixture
def one_billion(tmp_path):
    """The folder of a Llama 3.2 1B, as far as its sizes go."""
    (tmp_path / "1b").mkdir()
    (tmp_path / "1b" / "config.json").write_text(json.dumps(PUBLISHED_CONFIGS["meta-llama/Llama-3.2-1B"]))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "1b" / name).touch()
    return {"path": str(tmp_path / "1b")}


@pytest.mark.slow
def test_half_of_three_groups_is_a_third(warnings_of):
    assert warnings_of(step("kv_groups", fraction=0.5)) == [f"steps.smaller-0.{HALF_OF_THREE}"]
    assert warnings_of(step("kv_groups", fraction=0.34)) == []
    assert warnings_of({**step("kv_groups", fraction=0.5), "scope": "global"}) == []


def test_a_target_between_two_numbers_of_layers_is_warned_of(warnings_of, one_billion):
    (warning,) = warnings_of(step("layers", flops=0.93), base=one_billion)
    assert warning.startswith("steps.smaller-0.budget.flops: 0.93 of the dense model's FLOPs: the nearest")
    left, missed = re.search(
        r"removes 1 layers and leaves (0\.\d+), (\d+)% less than asked$", warning
    ).groups()
    assert 1 - (1 - float(left)) / 0.07 == pytest.approx(float(missed) / 100, abs=0.006)
    assert warnings_of(step("layers", flops=float(left)), base=one_billion) == []


def test_a_pruning_that_removes_nothing_is_refused(warnings_of, one_billion):
    with pytest.raises(CopraError, match=r"steps\.smaller-0\.budget\.flops: 0\.98 .* removing nothing"):
        warnings_of(step("layers", flops=0.98), base=one_billion)
    with pytest.raises(CopraError, match=r"steps\.smaller-0\.budget\.fraction: 0\.1 .* removing nothing"):
        warnings_of(step("kv_groups", fraction=0.1))


def test_what_depends_on_scores_is_left_to_them(warnings_of):
    """Of several kinds, and of a model whose layers an earlier pruning made unlike each other."""
    assert warnings_of({**step(["kv_groups", "neurons"], flops=0.99), "multiple_of": 8}) == []
    uneven = {**step("kv_groups", count=1), "scope": "global"}
    assert warnings_of(uneven, step("kv_groups", fraction=0.1)) == []


@pytest.mark.slow
def test_several_kinds_cannot_leave_less_than_one_of_each(warnings_of):
    """A layer has 24 x 4 x 2 x (6 + 3) = 1728 weights in attention and 3 x 24 x 32 = 2304 in the FFN.

    With one head, one group and 16 neurons 384 and 1152 are left, 0.381 of 4032.
    """
    both = {**step(["kv_groups", "heads", "neurons"], parameters=0.14), "multiple_of": 16}
    assert warnings_of(both) == []
    with pytest.raises(CopraError, match=r"smaller-0\.budget\.parameters: 0\.12 .* removed 0\.3810 are left"):
        warnings_of({**both, "budget": {"parameters": 0.12}})
    # Of two such layers one can go, whole.
    with_layers = {**both, "unit": ["layers", "heads"], "budget": {"parameters": 0.01}}
    with pytest.raises(
        CopraError, match=r"budget\.parameters: 0\.01 .* layers and query heads: .* removed 0\.4"
    ):
        warnings_of(with_layers)
    one_layer = {"from_scratch": {**THREE, "layers": 1}}
    assert warnings_of({**both, "budget": {"flops": 0.9}}, base=one_layer) == []
    groups = step("kv_groups", count=4)
    with pytest.raises(
        CopraError, match=r"smaller-1\.budget\.parameters: the model has 0\.7\d* .* less than 0\.9"
    ):
        warnings_of(groups, {**both, "budget": {"parameters": 0.9}})


def test_a_base_that_is_not_there_yet_is_left_out(warnings_of):
    assert warnings_of(step("layers", fraction=0.001), base={"path": "no/such-model"}) == []


@pytest.mark.slow
def test_check_and_plan_tell(make_workflow, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    workflow = make_workflow(
        steps__half=step("kv_groups", fraction=0.5),
        bases={"llama": {"from_scratch": THREE}},
        recipes=[["cot", "half", "no-cot"]],
    )
    config = workflow.experiment.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["check", "config.yaml"]) == 0
    warning = f"steps.half.{HALF_OF_THREE}"
    assert capsys.readouterr().out.splitlines()[-1] == f"  warning: {warning}"
    told = page(forecast(workflow), workflow, "config.yaml")
    assert f"\n\nPrunings far from their budgets:\n- {warning}\n\n" in told
    config["steps"]["half"]["budget"]["fraction"] = 0.1
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for verb in ("check", "plan"):
        assert main([verb, "config.yaml"]) == 1
        assert "steps.half.budget.fraction: 0.1 of 6 KV groups is nearest" in capsys.readouterr().err
