"""What holds of both classes whose layers differ, copra's Llama and its GPT-2, in caches, types and files."""

import pytest
import test_per_layer_gpt2
import test_per_layer_llama
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from copra.models.checkpoint import register


@pytest.fixture(params=[test_per_layer_llama, test_per_layer_gpt2], ids=["llama", "gpt2"])
def family(request):
    """The tests of one class, for its `make`, `config` and OVERRIDES."""
    return request.param


@pytest.fixture
def model(family):
    return family.make()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(1))


KV_HEADS = {test_per_layer_llama: (1, 3, 1), test_per_layer_gpt2: (2, 5, 3)}


def test_cached_passes_equal_one_pass(family, model, input_ids):
    cache = DynamicCache(config=model.config)
    pieces = [model(input_ids[:, i : i + 3], past_key_values=cache, use_cache=True).logits for i in (0, 3, 6)]
    assert torch.allclose(torch.cat(pieces, dim=1), model(input_ids).logits, atol=1e-5)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(2, n, 9, 8) for n in KV_HEADS[family]]


def test_generation_is_the_same_with_every_cache(model, input_ids):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    uncached = model.generate(input_ids, use_cache=False, **options)
    assert torch.equal(model.generate(input_ids, **options), uncached)
    assert torch.equal(model.generate(input_ids, cache_implementation="static", **options), uncached)


def test_it_is_built_on_the_meta_device_and_in_another_type(family, model):
    kind = type(model)
    with torch.device("meta"):
        built = kind(family.config())
    assert {p.device.type for p in built.parameters()} == {"meta"}
    half = kind._from_config(family.config(), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_reload_inside_copra_is_bit_equal(tmp_path, family, input_ids, tied):
    model = family.make(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    register()
    register()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)
    reread = AutoConfig.from_pretrained(tmp_path)
    assert (reread.layer_overrides, reread.head_dim) == (family.OVERRIDES, 8)
