"""What a base's config.json says about the steps of its recipes, before anything is fetched or trained."""

import json

import pytest

from copra.experiment.workflow import Workflow
from copra.models.families import FAMILIES
from copra.utils.errors import CopraError

TRAINING = {"steps": 8, "batch_size": 16}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "vocab_size": 40,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 40}


def prune(unit, **changes):
    step = {"kind": "prune", "unit": unit, "metric": "taylor", "budget": {"flops": 0.8}, **changes}
    return {"cot": {"kind": "cot", "training": TRAINING}, "cut": step}


@pytest.fixture
def check(tmp_path):
    """Checks a config of one base with this config.json, trained and then changed by the step `cut`."""

    def run(config, steps, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config))
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).touch()
        experiment = {
            "task": "sums",
            "tasks": {"sums": {"kind": "word_sums"}},
            "base": "local",
            "bases": {"local": {"path": str(tmp_path)}, "unused": {"path": str(tmp_path / "nowhere")}},
            "steps": steps,
            "recipes": [["cot", "cut"]],
        }
        return Workflow({**experiment, **changes}, "config.yaml")

    return run


@pytest.mark.parametrize("model_type", [*FAMILIES, "copra_llama", "copra_olmo2"])
@pytest.mark.parametrize("unit", ["layers", "kv_groups", "heads", "neurons"])
def test_each_family_loses_what_it_can(check, model_type, unit):
    config = GPT2 if model_type == "gpt2" else {**SIZES, "model_type": model_type}
    reasons = {}
    if model_type.endswith("olmo2"):
        reasons = dict.fromkeys(("kv_groups", "heads"), "their q/k norm spans all heads")
        instead = "layers or neurons"
    elif model_type in ("gpt2", "gpt_neox"):
        reasons = {"heads": "their KV groups have a single query head"}
        instead = "layers, kv_groups or neurons"
    if unit not in reasons:
        check(config, prune(unit))
        return
    with pytest.raises(CopraError) as refused:
        check(config, prune(unit))
    assert str(refused.value) == (
        f"config.yaml: steps.cut.unit: {model_type} models cannot lose {unit} ({reasons[unit]}). Prune "
        f"{instead}."
    )


def test_a_setting_of_the_config_can_forbid_a_unit(check):
    config = {**GPT2, "scale_attn_by_inverse_layer_idx": True}
    check(config, prune("neurons"))
    with pytest.raises(CopraError, match=r"cut\.unit: gpt2 models cannot lose layers \(.*layer's number"):
        check(config, prune(["layers", "neurons"]))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gemma3", None])
def test_an_unknown_type_is_one_line_with_the_known_ones(check, model_type):
    with pytest.raises(CopraError) as refused:
        check({**SIZES, "model_type": model_type}, prune("layers"))
    assert str(refused.value) == (
        f"config.yaml: bases.local.path: model_type {model_type!r} is not supported. Take a model of one of "
        f"the types {', '.join(FAMILIES)}."
    )


def test_no_causal_decoder_is_refused(check):
    config = {**SIZES, "model_type": "gemma3_text", "use_bidirectional_attention": True}
    with pytest.raises(CopraError, match=r"bases\.local\.path: config\.json: use_bidirectional_attention"):
        check(config, prune("layers"))


@pytest.mark.parametrize(
    ("size", "value", "problem"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, which is no size"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0, which is no size"),
        ("num_attention_heads", True, "num_attention_heads is True, which is no size"),
        ("num_key_value_heads", -2, "num_key_value_heads is -2, which is no size"),
        ("num_key_value_heads", 3, "4 query heads cannot be shared out equally over 3 key/value heads"),
        ("head_dim", 0, "head_dim is 0, which is no size"),
        ("intermediate_size", "100", "intermediate_size is '100', which is no size"),
    ],
)
def test_a_size_that_no_model_has_is_refused(check, size, value, problem):
    with pytest.raises(CopraError, match=rf"bases\.local\.path: config\.json: {problem}"):
        check({**SIZES, "model_type": "llama", size: value}, prune("layers"))


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            prune("layers", protect=[1, 4]),
            r"steps\.cut\.protect: there is no layer 4\. local has 4 layers, counted from 0\.",
        ),
        (
            prune("layers", protect=[1], budget={"count": 4}),
            r"steps\.cut\.budget\.count: 4 layers cannot go, as local can lose 3 at most\. Lower it\.",
        ),
        (
            prune("kv_groups", budget={"count": 5}),
            r"count: 5 KV groups cannot go, as local can lose 4",
        ),
        (prune("heads", budget={"count": 9}), r"count: 9 query heads cannot go, as local can lose 8"),
        (
            prune("neurons", budget={"count": 145}),
            r"count: 145 neurons cannot go, as local can lose 144",
        ),
        (
            prune("neurons", multiple_of=100),
            r"multiple_of: 100 leaves no narrower FFN.* 100 neurons",
        ),
    ],
)
def test_what_a_model_of_this_size_cannot_lose_is_named(check, step, problem):
    with pytest.raises(CopraError, match=problem):
        check({**SIZES, "model_type": "llama"}, step)


@pytest.mark.parametrize(
    "step",
    [
        prune("layers", budget={"count": 3}, protect=[3]),
        prune("kv_groups", budget={"count": 4}),
        prune("heads", budget={"count": 8}),
        prune("neurons", budget={"count": 144}),
        prune("neurons", multiple_of=99),
    ],
)
def test_what_a_model_of_this_size_can_just_lose_is_not(check, step):
    check({**SIZES, "model_type": "llama"}, step)


def test_curves_are_checked_too(check):
    curve = {"model": "local+cot", "unit": "kv_groups", "metrics": ["taylor"], "remove": [1, 5]}
    with pytest.raises(CopraError, match=r"curves\.ours\.remove: 5 KV groups cannot go, as local can lose 4"):
        check({**SIZES, "model_type": "llama"}, prune("layers"), curves={"ours": curve})
    with pytest.raises(CopraError, match=r"curves\.ours\.unit: olmo2 models cannot lose kv_groups"):
        check({**SIZES, "model_type": "olmo2"}, prune("layers"), curves={"ours": curve})


def test_gpt2_cannot_have_int8_weights(check):
    steps = {**prune("layers"), "cut": {"kind": "quantize", "weights": "int8"}}
    check({**SIZES, "model_type": "gpt_neox"}, steps)
    with pytest.raises(CopraError, match=r"steps\.cut\.weights: gpt2 models cannot have int8 weights"):
        check(GPT2, steps)


def test_a_base_from_scratch_is_checked_by_its_settings(check):
    scratch = {"architecture": "gpt2", "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32}
    bases = {"local": {"from_scratch": scratch}}
    with pytest.raises(CopraError, match=r"steps\.cut\.unit: gpt2 models cannot lose heads"):
        check({}, prune("heads"), bases=bases)


def test_a_base_whose_config_is_not_known_yet_is_left_to_its_job(check):
    check({}, prune("heads"), bases={"local": {"path": "nobody/has-fetched-this"}})


@pytest.mark.parametrize(
    ("loop", "steps", "problem"),
    [
        ({"layers": [1, 3]}, ["looped"], None),
        ({"layers": [1, 2]}, ["cot", "cut", "looped"], None),
        ({"layers": [1, 4]}, ["looped"], "layers: there is no layer 4. local has 4 layers, counted from 0."),
        (
            {"layers": [1, 3]},
            ["cot", "cut", "looped"],
            "layers: there is no layer 3. local without 1 layers has 3 layers, counted from 0.",
        ),
        ({"times": 129}, ["looped"], "times: 516 visits of layers are more than 512. Lower it."),
    ],
)
def test_a_loop_is_over_layers_that_the_model_has(check, loop, steps, problem):
    looped = {"kind": "looped", "loop": loop, "training": {"steps": 1}}
    config, steps = {**SIZES, "model_type": "llama"}, [steps]
    all_steps = {**prune("layers", budget={"count": 1}), "looped": looped}
    if problem is None:
        check(config, all_steps, recipes=steps)
        return
    with pytest.raises(CopraError) as refused:
        check(config, all_steps, recipes=steps)
    assert str(refused.value) == f"config.yaml: steps.looped.loop.{problem}"


@pytest.mark.parametrize(
    ("importance", "count", "problem"),
    [
        ({}, 3, None),
        ({"greedy_protect": [0, 2]}, 2, None),
        ({"greedy_removals": 3}, 1, None),
        ({}, 4, "steps.cut.budget.count: 4 layers cannot go, as local can lose 3 at most. Lower it."),
        (
            {"greedy_removals": 4},
            1,
            "importance.greedy_removals: 4 layers cannot go, as local can lose 3 at most. Lower it.",
        ),
        (
            {"greedy_protect": [0, 2]},
            3,
            "steps.cut.budget.count: 3 layers cannot go, as local can lose 2 at most with "
            "importance.greedy_protect. Lower it.",
        ),
        (
            {"greedy_protect": [4]},
            1,
            "importance.greedy_protect: there is no layer 4. local has 4 layers, counted from 0.",
        ),
    ],
)
def test_a_greedy_search_finds_no_more_layers_than_there_are(check, importance, count, problem):
    config = {**SIZES, "model_type": "llama"}
    steps = prune("layers", metric="greedy_loss", budget={"count": count})
    if problem is None:
        check(config, steps, importance=importance)
        return
    with pytest.raises(CopraError) as refused:
        check(config, steps, importance=importance)
    assert str(refused.value) == f"config.yaml: {problem}"


def test_a_greedy_search_after_a_pruning_finds_what_that_left(check):
    steps = prune("layers", metric="greedy_loss", budget={"count": 2})
    steps["first"] = {**steps["cut"], "metric": "deepest", "budget": {"count": 2}}
    with pytest.raises(CopraError) as refused:
        check({**SIZES, "model_type": "llama"}, steps, recipes=[["cot", "first", "cut"]])
    assert str(refused.value) == (
        "config.yaml: steps.cut.budget.count: 2 layers cannot go, as local without 2 layers can lose 1 at "
        "most. Lower it."
    )


def test_a_curve_by_a_greedy_search_is_checked_too(check):
    curve = {"model": "local+cot", "unit": "layers", "metrics": ["greedy_loss"], "remove": [1, 3]}
    steps, config = prune("neurons"), {**SIZES, "model_type": "llama"}
    check(config, steps, curves={"ours": curve})
    with pytest.raises(CopraError, match=r"curves\.ours\.remove: 3 layers cannot go, as local can lose 2"):
        check(config, steps, curves={"ours": curve}, importance={"greedy_protect": [0, 1]})
