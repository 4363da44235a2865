"""Weights, bytes and caches, against real models and files."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from copra.cost.parameters import (
    answering_bytes,
    answering_parameters,
    block_parameters,
    kv_cache_bytes_per_token,
)
from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.models.looping import loop_layers
from copra.models.shape import shape_of
from copra.schema.loop import Loop
from helpers.manifests import provenance

WANTED = {"projection": {}, "mind_reader": {}, "emulator": {}, "step_decoder": {"layers": 2}}
# What each way to answer needs, beside the language model.
ANSWERING = {
    "text": (GenerationSpec((), 0, "hidden", 48, ()), ()),
    "raw latents": (GenerationSpec((47,), 3, "hidden", 48, (49,)), ()),
    "projected latents": (GenerationSpec((47,), 3, "hidden", 48, (49,), "projected"), ("projection",)),
    "iterations": (GenerationSpec((47,), 3, "hidden", 48, (49,), "projected", 2), ("projection",)),
    "pauses": (GenerationSpec((47,), 3, "embedding", 48, (49,), "projected"), ()),
    "no latents any more": (GenerationSpec((47,), 0, "hidden", 48, (49,), "projected"), ()),
    "emulated": (GenerationSpec((), 0, "hidden", 48, (), emulated=True), ("mind_reader", "emulator")),
}


@pytest.fixture
def save(make_model, word_tokenizer, tmp_path):
    """Saves a tiny model with parts; returns the model, the extra modules and the manifest."""

    def save(kind: str, decoding: GenerationSpec, wanted=WANTED):
        model = make_model(kind, len(word_tokenizer), double=False)
        extra_modules = make_extra_modules(model, wanted)
        made_of = provenance(decoding=decoding)
        save_checkpoint(tmp_path / "model", model, word_tokenizer, made_of, None, extra_modules, wanted)
        return model, extra_modules, load_checkpoint(tmp_path / "model").manifest

    return save


@pytest.mark.parametrize(
    ("kind", "way"), [("gpt2", "emulated"), ("llama", "text"), *(("copra_llama", way) for way in ANSWERING)]
)
def test_what_an_answer_needs_is_counted(save, tmp_path, kind, way):
    decoding, names = ANSWERING[way]
    model, extra_modules, manifest = save(kind, decoding)
    needed = [parameter for name in names for parameter in extra_modules[name].parameters()]
    assert answering_parameters(manifest) == sum(p.numel() for p in [*model.parameters(), *needed])
    # The bytes are those of a file with these extra modules alone, but for its short table of contents.
    save_file({str(i): parameter.detach().clone() for i, parameter in enumerate(needed)}, tmp_path / "needed")
    weights = (tmp_path / "model" / WEIGHTS).stat().st_size
    headers = 200 * sum(1 for _ in extra_modules.parameters())
    expected = weights + sum(parameter.nbytes for parameter in needed)
    assert expected <= answering_bytes(manifest) <= expected + headers * bool(names)


def test_where_an_answer_needs_all_parts_their_file_counts_whole(save, tmp_path):
    decoding, names = ANSWERING["emulated"]
    _, _, manifest = save("llama", decoding, {name: {} for name in names})
    files = [tmp_path / "model" / name for name in (WEIGHTS, "extra_modules.safetensors")]
    assert answering_bytes(manifest) == sum(file.stat().st_size for file in files)


def test_a_model_without_parts_needs_its_weights_alone(save, tmp_path):
    model, _, manifest = save("gpt2", ANSWERING["text"][0], {})
    assert manifest.extra_modules is None
    assert answering_parameters(manifest) == sum(p.numel() for p in model.parameters())
    assert answering_bytes(manifest) == (tmp_path / "model" / WEIGHTS).stat().st_size


def test_block_parameters_are_those_of_the_models(make_model):
    """Without the biases of GPT-2."""
    for kind, attention, ffn in (
        ("gpt2", "attn", "mlp"),
        ("copra_llama", "self_attn", "mlp"),
    ):
        model = make_model(kind)
        blocks = model.base_model.h if kind == "gpt2" else model.base_model.layers
        found = [
            {
                "attention": sum(
                    p.numel() for p in block.get_submodule(attention).parameters() if p.dim() == 2
                ),
                "ffn": sum(p.numel() for p in block.get_submodule(ffn).parameters() if p.dim() == 2),
            }
            for block in blocks
        ]
        assert block_parameters(shape_of(model.config.to_dict())) == found


@pytest.mark.parametrize("loop", [None, Loop(times=2), Loop(layers=(1, 2), times=3)])
def test_cache_bytes_are_those_of_a_cache(any_model, loop):
    shape = shape_of(any_model.config.to_dict())
    loop_layers(any_model, loop)
    cache = DynamicCache(config=any_model.config)
    any_model(torch.arange(1, 8)[None], past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes_per_token(shape.looped(loop), any_model.dtype.itemsize) * 7 == held
