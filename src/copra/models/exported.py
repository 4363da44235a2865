"""The decoding of a checkpoint as plain values, for programs other than copra that run it."""

from typing import Any

from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import Checkpoint
from copra.models.networks import embedding_norm
from copra.utils.errors import CopraError


def decoding_of(checkpoint: Checkpoint, format: str) -> dict[str, Any]:
    """Return what follows a prompt before the answer, as plain JSON values.

    They are `prefix_ids`, `latents`, `latent_token` and `suffix_ids`; `feed`, "raw" or "scaled" where hidden
    states are fed back (None: the latents are tokens), and `norm`, that of scaled latents.

    Raises:
        CopraError: the weights are quantized already, or the checkpoint answers in a way that a loop over
            single passes cannot follow; the message names the `format`.
    """
    spec, node = checkpoint.decoding, checkpoint.manifest.node
    if checkpoint.manifest.quantized:
        raise CopraError(
            f"{node}: its weights are {checkpoint.manifest.quantized} already. Name the model before that "
            "step, and choose the type of weights with --type."
        )
    if spec is None:
        spec = GenerationSpec((), 0, "hidden", 0, ())
    if spec.unexportable_part:
        raise CopraError(f"{node}: answers with {spec.unexportable_part}, for which {format} has no form.")
    feed = spec.latent_input if spec.has_recurrent_latents else None
    return {
        "prefix_ids": list(spec.prefix_ids),
        "latents": spec.latents,
        "latent_token": spec.latent_token,
        "suffix_ids": list(spec.suffix_ids),
        "feed": feed,
        "norm": float(embedding_norm(checkpoint.model)) if feed == "scaled" else None,
    }


def check_family(checkpoint: Checkpoint, format: str, families: dict[str, str]) -> None:
    """Check that a model, whole or with unequal layers, is of one of `families`: names by model type.

    Raises:
        CopraError: it is not.
    """
    family = checkpoint.manifest.shape.family
    if family not in families:
        raise CopraError(
            f"{checkpoint.manifest.node}: is a model of type {family}. {format} files are written of "
            f"{' and '.join(families.values())}."
        )
