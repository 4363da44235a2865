"""Qwen2 (biases on q, k and v) and Qwen3 (a norm of each head's query and key); layers may have a window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    if not config.get("use_sliding_window"):
        return None
    types = config.get("layer_types")
    slides = types[layer] == "sliding_attention" if types else layer >= config.get("max_window_layers", 28)
    return config.get("sliding_window", 4096) if slides else None


QWEN2 = Family(
    "qwen2",
    LAYOUT,
    by_layer=("layer_types",),
    window=_window,
    defaults={"num_key_value_heads": 32},
)
QWEN3 = replace(QWEN2, model_type="qwen3", defaults={"num_key_value_heads": 32, "head_dim": 128})
