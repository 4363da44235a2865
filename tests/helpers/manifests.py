"""Provenance and manifests of models that no step made."""

from dataclasses import replace
from typing import Any

from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import Checkpoint
from copra.models.manifest import Manifest, Provenance, Weights
from copra.schema.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", hidden=8, vocabulary=50, ffn_matrices=3, layers=(LayerShape(2, 1, 4, 16),))


def provenance(node: str = "tiny@0", **changes: Any) -> Provenance:
    """Return the provenance of a base, with other values of some fields."""
    fields = {
        "base": {},
        "seed": 0,
        "lineage": [],
        "method": None,
        "decoding": None,
        "dense_shape": SHAPE,
        "typical_answer": {"prompt": 7, "generated": 15},
        "training_flops": 0,
        "trained_markers": False,
    }
    return Provenance(node=node, **{**fields, **changes})


def manifest(node: str = "tiny@0", **changes: Any) -> Manifest:
    """Return the manifest of a base whose files are not there, with other values of some fields."""
    known = {name: changes.pop(name) for name in set(changes) & set(Provenance.model_fields)}
    fields = {
        "files": {"model.safetensors": "of the tiny model"},
        "extra_modules": None,
        "shape": SHAPE,
        "parameters": 0,
        "weights": Weights(sha256="of the tiny model", bytes=0, dtype="float32"),
        "versions": {},
    }
    return Manifest(**dict(provenance(node, **known)), **{**fields, **changes})


def with_manifest(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """Return a checkpoint with other values of some fields of its manifest."""
    return replace(checkpoint, manifest=checkpoint.manifest.model_copy(update=changes))


def reread(decoding: GenerationSpec) -> GenerationSpec | None:
    """Return a generation spec as a manifest gives it back."""
    return Provenance.model_validate_json(provenance(decoding=decoding).model_dump_json()).decoding
