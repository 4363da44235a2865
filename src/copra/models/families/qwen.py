"""Qwen2 (biases on q, k and v) and Qwen3 (a norm of each head's query and key); layers may have a window."""

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT

QWEN2 = Family("qwen2", LAYOUT, by_layer=("layer_types",), defaults={"num_key_value_heads": 32})
QWEN3 = Family(
    "qwen3", LAYOUT, by_layer=("layer_types",), defaults={"num_key_value_heads": 32, "head_dim": 128}
)
