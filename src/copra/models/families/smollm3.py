"""SmolLM3: as Llama, with rotary positions in some of the layers only."""

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT

SMOLLM3 = Family(
    "smollm3",
    LAYOUT,
    by_layer=("layer_types", "no_rope_layers"),
    defaults={"num_key_value_heads": 4},
    tied=True,
)
