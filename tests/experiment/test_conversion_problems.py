"""Conversions that no format has a form for, and recipes that are not there."""

import pytest

from copra.experiment.outputs import table_files
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError

TRAINING = {"steps": 8, "batch_size": 16}
LATENTS = {"kind": "coconut", "max_latent_stage": 2, "training": TRAINING}
SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64}


def flow(recipe, formats=("executorch-f32",), named=None, seeds=(0,), **sizes):
    config = {
        "task": "sums",
        "tasks": {"sums": {"kind": "word_sums"}},
        "base": "small",
        "bases": {"small": {"from_scratch": {**SIZES, **sizes}}},
        "steps": {
            "cot": {"kind": "cot", "training": TRAINING},
            "coconut": LATENTS,
            "parallel": {"kind": "codi", "latents": 3, "iterations": 1, "training": TRAINING},
            "projected": {**LATENTS, "latent_input": "projected"},
            "looped": {"kind": "looped", "loop": {"layers": "all", "times": 2}, "training": TRAINING},
            "shown": {"kind": "few_shot", "num_fewshot": 1},
            "int8": {"kind": "quantize", "weights": "int8"},
            "drop-1": {"kind": "prune", "unit": "layers", "metric": "cosine", "budget": {"count": 1}},
        },
        "recipes": [recipe],
        "seeds": list(seeds),
        "conversions": {"recipes": [named or "+".join(["small", *recipe])], "formats": list(formats)},
    }
    return Workflow(config, "mine.yaml")


@pytest.mark.parametrize("recipe", [["cot"], ["cot", "coconut"], ["cot", "coconut", "drop-1"]])
@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
def test_what_a_loop_over_passes_answers_is_converted_for_one_seed(recipe, tokenizer):
    formats = ["executorch-int8", *(["gguf-q8_0"] if tokenizer == "bpe" else [])]
    found = flow(recipe, formats, tokenizer=tokenizer, seeds=[3, 4])
    name = "+".join(["small", *recipe])
    assert found.converted == {name.replace("small", "small@3"): name}
    assert "results/mine/tables/conversions.csv" in table_files(found)


def test_without_them_there_is_no_table():
    found = flow(["cot"])
    config = {**found.config, "conversions": None}
    assert not any("conversions" in file for file in table_files(Workflow(config, "mine.yaml")))


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (["cot"], {"named": "small+cto"}, "'small+cto' is none of the recipes (did you mean 'small+cot'?)"),
        (["cot", "parallel"], {}, "small+cot+parallel answers with Jacobi iterations, for which no format"),
        (["projected"], {}, "answers with projected latents"),
        (["looped"], {}, "answers with a loop over its layers"),
        (["cot", "shown"], {}, "answers with worked examples"),
        (["cot", "int8"], {}, "small+cot+int8 stores its weights in 8 bits already. Leave it out"),
        (["cot"], {"formats": ["gguf-f16"]}, "gguf-f16 needs bases.small.from_scratch.tokenizer: bpe"),
        (["cot"], {"architecture": "gpt2", "formats": ["gguf-f16"]}, "of type gpt2, and gguf-f16 files"),
        (["cot"], {"architecture": "gpt2", "formats": ["executorch-int8"]}, "not linear ones"),
    ],
)
def test_what_has_no_form_is_told_before_anything_runs(recipe, changes, message):
    with pytest.raises(CopraError) as caught:
        flow(recipe, **changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.yaml: conversions.recipes.0: ")


def test_a_format_stands_there_once():
    with pytest.raises(CopraError, match=r"conversions.formats: .*'gguf-f16' stands there twice"):
        flow(["cot"], ["gguf-f16", "gguf-f16"])
