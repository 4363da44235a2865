"""Every reasoning method in one run of Snakemake: config/all-methods.yaml, made as small as it goes."""

from pathlib import Path

import pandas
import pytest
import yaml

from copra.methods import METHODS

PRESET = Path(__file__).parents[2] / "config" / "all-methods.yaml"

# Coconut's ablations and mixtures differ from Coconut in their samples only, which other tests look at.
LEFT_OUT = ("no-cot", "coconut-mixed", "without-thought", "pause-as-thought", "without-curriculum")
FEWER_STAGES = {
    "scratchpad": {"max_stage": 1},
    "icot_si": {"tokens_per_stage": 2, "remove_all_beyond": 2},
    "coconut": {"max_latent_stage": 1},
}


def small(config: dict) -> dict:
    """The preset with two optimizer steps per stage and few rows."""
    config["tasks"]["sums"] |= {"train": 200, "valid": 20, "test": 24}
    config["evaluation"] |= {"max_new_tokens": 6, "stages": False, "latents": [0, 2], "lens": 2}
    config["latency"] = {"questions": 2, "batch_size": 4, "repetitions": 1, "forced_tokens": 2}
    for step in config["steps"].values():
        step.pop("overrides", None)
        step |= FEWER_STAGES.get(step["kind"], {})
        if "training" in step:
            step["training"] = step["training"] | {"steps": 2, "warmup_steps": 1, "batch_size": 8}
    dense, pruned = (entry for entry in config["recipes"] if isinstance(entry, dict))
    dense["methods"] = [method for method in dense["methods"] if method not in LEFT_OUT]
    pruned["methods"] = ["codi"]
    return config


@pytest.fixture(scope="module")
def run(unstarted):
    run = unstarted.empty(unstarted.folder / "methods")
    config = small(yaml.safe_load(PRESET.read_text()))
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run.snakemake()
    return run


@pytest.fixture(scope="module")
def table(run) -> pandas.DataFrame:
    table = pandas.read_parquet(run.results / "tables" / "accuracy_vs_flops.parquet")
    return table.set_index(table["recipe"].str.removeprefix("llama+"))


def test_the_preset_has_a_recipe_of_every_method():
    config = yaml.safe_load(PRESET.read_text())
    assert {step["kind"] for step in config["steps"].values()} == {*METHODS, "few_shot", "prune"}


def test_every_recipe_has_its_row_and_its_time(table):
    assert len(table) == 15
    assert (table[["flops", "seconds_batch_1", "seconds_batched"]] > 0).all().all()


# Passes beside one for each generated token: one a latent, one a Jacobi iteration, one for the emulator.
EXTRA_PASSES = {
    "no-cot": 0,
    "cot": 0,
    "cot+few-shot": 0,
    "cot+scratchpad": 0,
    "cot+pause": 0,
    "cot+icot-si": 0,
    "cot+icot-kd": 1,
    "cot+coconut": 1,
    "cot+coconut-projected": 1,
    "cot+sim-cot": 1,
    "cot+codi": 4,
    "cot+codi-parallel": 2,
    "cot+codi-lora": 4,
    "cot+drop-1+codi": 4,
}


def test_sequential_depth_is_what_each_method_needs(table):
    extra = table["depth"] - table["generated_tokens"]
    assert {name: extra[name] for name in EXTRA_PASSES} == pytest.approx(EXTRA_PASSES)


def test_a_looped_model_costs_what_its_passes_cost(table):
    """Each pass runs all layers twice; the parameters are those of the model it was trained from."""
    looped, once = table.loc["cot+looped"], table.loc["cot"]
    assert looped["depth"] == pytest.approx(2 * looped["generated_tokens"])
    assert looped["kv_cache_bytes_per_token"] == 2 * once["kv_cache_bytes_per_token"]
    for name in ("parameters", "layers"):
        assert looped[name] == once[name]


def test_flops_follow_from_what_is_fed(table):
    """The more generated tokens the more FLOPs: what is compared here differs by far more."""
    prompt = table["flops"] / (table["generated_tokens"] + 60)
    assert prompt["cot+icot-kd"] > 1.5 * prompt["no-cot"]
    assert table["method_flops"]["cot+coconut"] == 0
    assert table["method_flops"]["cot+codi"] == pytest.approx(4 * 4 * 64**2)
    assert table["method_flops"]["cot+coconut-projected"] == pytest.approx(4 * 64**2)
    few_shot = table.loc["cot+few-shot"]
    assert few_shot["flops"] > 3 * few_shot["cached_prompt_flops"]
    others = table.drop(index="cot+few-shot")
    assert (others["cached_prompt_flops"] == others["flops"]).all()
    # And each time has FLOPs of its kind.
    assert few_shot["seconds_batch_1"] != few_shot["cached_prompt_seconds_batch_1"] > 0
    assert (others["cached_prompt_seconds_batch_1"] == others["seconds_batch_1"]).all()
    # Parts that only train are no parameters of an answer.
    assert table["parameters"]["cot+sim-cot"] == table["parameters"]["cot+coconut"]
    assert table["parameters"]["cot+codi-lora"] == table["parameters"]["cot+codi"]
    assert table["parameters"]["cot+icot-kd"] > 3 * table["parameters"]["cot"]


def test_latents_are_looked_into_where_there_are_any(run):
    swept = pandas.read_parquet(run.results / "tables" / "accuracy_vs_latents.parquet")
    recipes = {name.removeprefix("llama+") for name in swept["recipe"]}
    assert {"cot+coconut", "cot+codi-parallel", "cot+pause", "cot+drop-1+codi"} <= recipes
    assert not recipes & {"cot", "cot+icot-kd", "cot+icot-si"}
    seen = {path.stem for path in (run.results / "figures" / "latent_lens").glob("*.png")}
    assert "llama@0+cot+coconut" in seen
    assert "llama@0+cot+pause" not in seen
