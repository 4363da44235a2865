"""Which extra_modules a stage gets, and their sizes, by hand."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from copra.models.extra_modules import StepDecoder, make_extra_modules


def test_known_parts_stay_and_others_are_new(any_model):
    known = make_extra_modules(any_model, {"projection": {}, "step_decoder": {"layers": 1}})
    extra_modules = make_extra_modules(any_model, {"step_decoder": {"layers": 1}, "mind_reader": {}}, known)
    assert list(extra_modules) == ["step_decoder", "mind_reader"]
    assert extra_modules["step_decoder"] is known["step_decoder"]


def test_a_part_with_other_settings_is_new(any_model):
    """Its manifest would not fit its weights otherwise."""
    known = make_extra_modules(any_model, {"step_decoder": {"layers": 1}})
    extra_modules = make_extra_modules(any_model, {"step_decoder": {"layers": 2}}, known)
    fresh = make_extra_modules(any_model, {"step_decoder": {"layers": 2}})
    assert set(extra_modules.state_dict()) == set(fresh.state_dict()) > set(known.state_dict())


def test_parts_are_of_the_models_type(make_model):
    for double, dtype in ((True, torch.float64), (False, torch.float32)):
        wanted = {"projection": {}, "mind_reader": {}, "emulator": {}, "step_decoder": {"layers": 1}}
        extra_modules = make_extra_modules(make_model("llama", double=double), wanted)
        assert {parameter.dtype for parameter in extra_modules.parameters()} == {dtype}


def test_parts_have_the_sizes_of_the_papers(make_model):
    """d = 32 and 3 layers, whose blocks and final norm have so many weights; an embedding of 50 tokens."""
    model = make_model("llama")
    wanted = {"projection": {}, "mind_reader": {}, "emulator": {}, "step_decoder": {"layers": 1}}
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in make_extra_modules(model, wanted).items()
    }
    # Attention 32 x (32 + 16 + 16 + 32), FFN 3 x 32 x 40, two norms.
    block = 32 * 96 + 3 * 32 * 40 + 2 * 32
    assert sizes["projection"] == 2 * (32 * 32 + 32) + 2 * 32
    assert sizes["mind_reader"] == 3 * (32 * 128 + 128 + 128 * 32 + 32)
    assert sizes["step_decoder"] == block + 32
    networks = 3 * (64 * 128 + 128 + 128 * 32 + 32)
    lstm = 2 * (4 * 32 * 32 + 4 * 32)
    linears = 2 * (32 * 32 + 32) + 64 * 32 + 32
    assert sizes["emulator"] == 50 * 32 + 3 * block + 32 + networks + 32 + lstm + linears


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_a_step_decoder_may_have_more_layers_than_its_model(any_model, layers):
    decoder = StepDecoder(any_model, layers).double()
    states = decoder(torch.randn(2, 4, 32, dtype=torch.float64), torch.ones(2, 4, dtype=torch.long))
    assert states.shape == (2, 4, 32)
    assert any_model.config.num_hidden_layers == 3


def test_a_step_decoder_of_a_model_that_names_the_kind_of_each_layer():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, intermediate_size=40, vocab_size=50))
    assert StepDecoder(model, 5)(torch.randn(2, 4, 32), torch.ones(2, 4, dtype=torch.long)).shape == (
        2,
        4,
        32,
    )
