"""Read the config of a base model without creating or downloading the model."""

from pathlib import Path
from typing import Any

from copra.models.families import family_of
from copra.schema.base import Base, FromScratch
from copra.utils.files import read_json


def config_of(base: Base) -> dict[str, Any] | None:
    """Return the config of a base as in config.json, or None if it is not known.

    It comes from the base's settings, its folder or the Hub's cache.
    """
    if base.from_scratch is not None:
        return _from_scratch(base.from_scratch)
    file = base.folder / "config.json" if base.folder else _cached(base)
    return None if file is None or not file.is_file() else read_json(file)


def _from_scratch(spec: FromScratch) -> dict[str, Any]:
    family = family_of(spec.architecture)
    return {
        "model_type": spec.architecture,
        family.width: spec.hidden_size,
        family.layers: spec.layers,
        family.query_heads: spec.heads,
        **({family.kv_heads: spec.kv_heads or spec.heads} if family.kv_heads else {}),
        family.ffn: spec.intermediate_size,
        "vocab_size": spec.vocabulary,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }


def _cached(base: Base) -> Path | None:
    """Return the path of a Hub model's config.json in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    if base.path is None:
        return None
    try:
        found = try_to_load_from_cache(base.path, "config.json", revision=base.revision)
    except ValueError:  # not a valid Hub id, such as the path of a missing folder
        return None
    return Path(found) if isinstance(found, str) else None
