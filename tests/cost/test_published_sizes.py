"""The sizes of Llama 3.2 1B and the shares of its parts, as they were published."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from copra.cost.flops import FlopCounter, Pass
from copra.cost.parameters import block_parameters, kv_cache_bytes_per_token
from copra.models.published_configs import PUBLISHED_CONFIGS
from copra.models.shape import shape_of
from copra.schema.shape import LayerShape

CONFIG = LlamaConfig(**PUBLISHED_CONFIGS["meta-llama/Llama-3.2-1B"])


def share_saved(layers) -> float:
    """The part of a token's FLOPs that a 1B Llama with these layers saves, in percent."""
    shape = shape_of(CONFIG.to_dict())
    dense, left = (
        sum(FlopCounter(s).of_pass(Pass("decode", 1, 0, 1)).values())
        for s in (shape, shape.with_layers(layers))
    )
    return 100 * (1 - left / dense)


def test_llama_1b_has_the_published_sizes():
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    shape = shape_of(model.config.to_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400
    assert block_parameters(shape) == [{"attention": 10_485_760, "ffn": 50_331_648}] * 16
    for block, counted in zip(model.model.layers, block_parameters(shape), strict=True):
        assert sum(p.numel() for p in block.self_attn.parameters()) == counted["attention"]
        assert sum(p.numel() for p in block.mlp.parameters()) == counted["ffn"]
    # 8 KV heads of 64 for keys and for values, 16 layers, 2 bytes.
    assert kv_cache_bytes_per_token(shape, 2) == 8 * 64 * 2 * 16 * 2 == 32768


def test_llama_1b_has_the_published_shares():
    layer = LayerShape(32, 8, 64, 8192)
    assert share_saved((layer,) * 15) == pytest.approx(4.9, abs=0.05)
    assert share_saved((layer,) * 12) == pytest.approx(19.7, abs=0.05)
    assert share_saved((LayerShape(16, 4, 64, 8192),) * 16) == pytest.approx(6.8, abs=0.05)
    assert share_saved((LayerShape(28, 7, 64, 8192), *(layer,) * 15)) == pytest.approx(0.106, abs=0.001)
    assert share_saved((LayerShape(32, 8, 64, 6144),) * 16) == pytest.approx(16.3, abs=0.05)
    counter = FlopCounter(shape_of(CONFIG.to_dict()))
    total = counter.projections + counter.ffn + counter.head
    assert 100 * counter.projections / total == pytest.approx(13.6, abs=0.05)
    assert 100 * counter.head / total == pytest.approx(21.3, abs=0.05)
