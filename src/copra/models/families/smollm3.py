"""SmolLM3: like Llama, but with rotary positions only in some layers."""

from collections.abc import Mapping
from typing import Any

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    if not config.get("use_sliding_window"):
        return None
    if types := config.get("layer_types"):
        slides = types[layer] == "sliding_attention"
    elif rotary := config.get("no_rope_layers"):
        slides = not rotary[layer]
    else:
        slides = (layer + 1) % config.get("no_rope_layer_interval", 4) == 0
    return config.get("sliding_window") if slides else None


SMOLLM3 = Family(
    "smollm3",
    LAYOUT,
    by_layer=("layer_types", "no_rope_layers"),
    window=_window,
    defaults={"num_key_value_heads": 4},
    tied=True,
)
