"""Mistral: as Llama, with a sliding window in all layers or in none."""

from copra.models.families.family import Family
from copra.models.families.llama import LAYOUT

MISTRAL = Family("mistral", LAYOUT, defaults={"num_key_value_heads": 8})
