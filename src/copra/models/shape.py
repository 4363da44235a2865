"""Read the shape of a model, the sizes that its cost depends on, from its config alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from copra.models.families import family_of
from copra.models.families.family import Family
from copra.schema.settings import MOST_CHANNELS, MOST_LAYERS
from copra.schema.shape import LayerShape, ModelShape
from copra.utils.errors import CopraError
from copra.utils.problems import shown


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a Hugging Face config, given as the dictionary of its config.json.

    Raises:
        CopraError: the model type is not supported, a size is missing, or a setting makes the model no
            causal decoder.
    """
    family = family_of(config.get("model_type"))
    for setting, reason in family.refused.items():
        if config.get(setting):
            raise CopraError(
                f"config.json: {setting} is set, and copra prunes causal decoders alone ({reason}). Take "
                "another model."
            )
    layer = _layer(family, config)
    overrides = config.get("layer_overrides") or [{}] * _size(family, config, family.layers)
    layers = [
        replace(_own(family, layer, override), window=family.window(config, index))
        for index, override in enumerate(overrides)
    ]
    return ModelShape(
        family.model_type,
        _size(family, config, family.width),
        _size(family, config, "vocab_size"),
        family.layout.ffn_matrices,
        tuple(layers),
    )


def _layer(family: Family, config: Mapping[str, Any]) -> LayerShape:
    """Return the shape of a layer without overrides."""
    width, heads = (_size(family, config, name) for name in (family.width, family.query_heads))
    groups = _known(family, config, family.kv_heads) if family.kv_heads else None
    if groups and heads % groups:
        raise CopraError(
            f"config.json: {heads} query heads cannot be shared out equally over {groups} key/value heads "
            f"({family.kv_heads}). Correct one of them."
        )
    ffn = _known(family, config, family.ffn)
    if ffn is None and family.ffn_per_width:
        ffn = family.ffn_per_width * width
    return LayerShape(
        query_heads=heads,
        kv_heads=groups or heads,
        head_dim=_known(family, config, "head_dim") or width // heads,
        ffn=_size(family, {family.ffn: ffn}, family.ffn),
    )


def _own(family: Family, layer: LayerShape, override: Mapping[str, int]) -> LayerShape:
    """Return the shape of a layer with the sizes of its entry in layer_overrides."""
    heads = override.get(family.query_heads, layer.query_heads)
    groups = override.get(family.kv_heads, layer.kv_heads) if family.kv_heads else heads
    return replace(layer, query_heads=heads, kv_heads=groups, ffn=override.get(family.ffn, layer.ffn))


def _known(family: Family, config: Mapping[str, Any], name: str) -> int | None:
    """Return a size that the config may omit or set to null: the family's default, or None."""
    known = config if name in config else family.defaults
    return None if known.get(name) is None else _size(family, known, name)


def _size(family: Family, config: Mapping[str, Any], name: str) -> int:
    """Return a required size.

    Raises:
        CopraError: it is missing, or no positive integer within the limits.
    """
    value = config.get(name)
    # The check itself would run out of memory for a model of a billion layers.
    most = MOST_LAYERS if name == family.layers else MOST_CHANNELS**2
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CopraError(
            f"config.json: {name} is {shown(value)}, which is no size of a {family.model_type} model. "
            "Correct it."
        )
    return value
