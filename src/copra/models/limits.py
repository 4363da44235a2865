"""Determine from a config the unit types that cannot be pruned from a model."""

from collections.abc import Mapping
from typing import Any

from copra.models.families import family_of
from copra.models.shape import shape_of

UNITS = ("layers", "kv_groups", "heads", "neurons")
"""The unit types, the coarsest first."""


def limits_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the reason for each unit type that a model cannot lose, by its config.json.

    Raises:
        CopraError: the model type is not supported, or the config is not that of a causal decoder.
    """
    layers = shape_of(config).layers
    limits = {}
    if len(layers) == 1:
        limits["layers"] = "they have a single layer"
    if all(layer.kv_heads == 1 for layer in layers):
        limits["kv_groups"] = "their layers have a single KV group"
    if all(layer.query_heads == layer.kv_heads for layer in layers):
        limits["heads"] = "their KV groups have a single query head"
    for cannot in family_of(config.get("model_type")).cannot:
        if cannot.setting is None or config.get(cannot.setting):
            limits |= dict.fromkeys(cannot.units, cannot.reason)
    return limits


def cannot_lose(config: Mapping[str, Any], unit: str) -> str | None:
    """Return why a model cannot lose a unit type, with the types to prune instead; None if it can."""
    limits = limits_of(config)
    if unit not in limits:
        return None
    *others, last = [each for each in UNITS if each not in limits]
    instead = f"{', '.join(others)} or {last}" if others else last
    return f"{config['model_type']} models cannot lose {unit} ({limits[unit]}). Prune {instead}."
