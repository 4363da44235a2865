"""Gemma 1, 2 and 3 (text): scaled embeddings and a separate head size.

From Gemma 2 on there are also norms after attention and FFN.

Gemma 2 caps attention scores and logits by tanh. transformers supports the former only in eager attention,
which it selects itself; `copra.models.logits` does the latter.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT


def _window(pattern: int, config: Mapping[str, Any], layer: int) -> int | None:
    """Return the window of a layer; without `layer_types`, every `pattern`th layer has none."""
    types = config.get("layer_types")
    every = config.get("sliding_window_pattern", pattern)
    slides = types[layer] == "sliding_attention" if types else (layer + 1) % every != 0
    return config.get("sliding_window", 4096) if slides else None


GEMMA = Family(
    "gemma",
    LAYOUT,
    defaults={"num_key_value_heads": 16, "head_dim": 256},
    tied=True,
    refused={"use_bidirectional_attention": "its tokens see those after them"},
)
GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    by_layer=("layer_types",),
    window=partial(_window, 2),
    defaults={"num_key_value_heads": 4, "head_dim": 256},
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text", window=partial(_window, 6))
