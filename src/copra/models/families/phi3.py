"""Phi-3: like Llama, with q, k and v in one projection and gate and up in another."""

from collections.abc import Mapping
from typing import Any

from copra.models.families.family import Family, Layout, Projection

LAYOUT = Layout(
    projections=(
        Projection("self_attn.qkv_proj", ("query", "key", "value")),
        Projection("mlp.gate_up_proj", ("neuron", "neuron")),
    ),
    attention_output="self_attn.o_proj",
    ffn_output="mlp.down_proj",
)


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    return config.get("sliding_window")


PHI3 = Family("phi3", LAYOUT, window=_window)
