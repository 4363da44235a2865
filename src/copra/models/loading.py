"""Load the weights of a language model, refusing missing, unexpected or broken ones."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from copra.models.portable import unmarked_config
from copra.utils.errors import CopraError

WRAPPERS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "module.",
    "base_model.model.",
)
"""Prefixes that torch.compile, FSDP, activation checkpointing, DDP and peft add to names of weights."""
HARMLESS_KEYS = re.compile(r"(\.attn\.masked_bias|rotary_emb\.(inv_freq|cos_cached|sin_cached))$")
"""Keys of buffers that old versions of transformers saved and that are not trained."""
QUANTIZED_KEYS = re.compile(r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|absmax)$")
"""Keys that only quantized weights have: those of GPTQ, AWQ, fp8, compressed-tensors and bitsandbytes."""
SHOWN = 3


def load_language_model(place: str | Path, name: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or the Hub; `options` are those of `from_pretrained`.

    Raises:
        CopraError: weights are missing, unexpected, of another shape, or not finite; the message begins with
        `name`.
    """
    if "config" not in options and (config := unmarked_config(Path(place))) is not None:
        options["config"] = config
    with _only_errors_logged():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    model, found = loaded
    missing = sorted(found["missing_keys"])
    unexpected = sorted(key for key in found["unexpected_keys"] if not HARMLESS_KEYS.search(key))
    mismatched = sorted(found["mismatched_keys"])
    problems = [
        f"{_listed(missing)} missing" if missing else "",
        f"{_listed(unexpected)} unexpected" if unexpected else "",
        f"{_listed([_sizes(*each) for each in mismatched])} of another shape" if mismatched else "",
    ]
    if any(problems):
        raise CopraError(
            f"{name}: its weights are not those that its config.json describes: "
            f"{'; '.join(filter(None, problems))}. {_remedy(missing, unexpected)}"
        )
    if broken := [key for key, weight in model.state_dict().items() if not _is_finite(weight)]:
        raise CopraError(
            f"{name}: {_listed(broken)} not finite (infinity or not a number), so the file is damaged or the "
            "training that wrote it broke down. Take an earlier or another checkpoint."
        )
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        # A file may have a separate head though the config ties it. transformers keeps that head until the
        # vocabulary grows, and would then tie and lose it.
        model.config.tie_word_embeddings = False
    return model


def _listed(keys: list[str]) -> str:
    more = ", ..." if len(keys) > SHOWN else ""
    return f"{len(keys)} ({', '.join(keys[:SHOWN])}{more}) {'is' if len(keys) == 1 else 'are'}"


def _sizes(key: str, stored: Collection[int], expected: Collection[int]) -> str:
    return f"{key} {list(stored)} instead of {list(expected)}"


def _remedy(missing: list[str], unexpected: list[str]) -> str:
    """Return the likely cause of keys that do not match, and the next step for the user."""
    wanted = set(missing)
    for wrapper in WRAPPERS:
        if any(wrapper in key and key.replace(wrapper, "") in wanted for key in unexpected):
            return (
                f"It was saved from a compiled or wrapped model: strip {wrapper!r} from the keys of the "
                "file, or save the model inside the wrapper."
            )
    if any("lora_" in key or ".base_layer." in key for key in unexpected):
        return "It holds adapters that were not merged: merge them into the weights and save the whole model."
    if any(map(QUANTIZED_KEYS.search, unexpected)):
        return "The weights are quantized: take the model in full precision."
    if prefix := _common_prefix(wanted, unexpected):
        return f"The keys of the file have {prefix!r} in front: strip it."
    if missing and not unexpected and all("lm_head" in key for key in missing):
        return (
            "An untied LM head needs weights of its own: take a complete copy, or set tie_word_embeddings: "
            "true in config.json if the model shares them with the embedding."
        )
    return "Take a complete copy of the model, with the config.json that belongs to it."


def _common_prefix(missing: Collection[str], unexpected: list[str]) -> str:
    """Return the prefix of an unexpected key whose rest is a missing key ("" if there is none)."""
    for key in unexpected:
        for dot in (place.end() for place in re.finditer(r"\.", key)):
            if key[dot:] in missing:
                return key[:dot]
    return ""


def _is_finite(weight: torch.Tensor) -> bool:
    """False if a plain tensor of floats has an infinity or NaN; makes no copy of it."""
    if (
        type(weight) not in (torch.Tensor, nn.Parameter)
        or not weight.is_floating_point()
        or not weight.numel()
    ):
        return True
    return bool(torch.stack(torch.aminmax(weight)).isfinite().all())


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Suppress transformers' report of mismatched keys: `load_language_model` reports them in its error."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with no_progress_bars():
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable transformers' progress bars within this context; they fill logs."""
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.utils.logging.enable_progress_bar()
