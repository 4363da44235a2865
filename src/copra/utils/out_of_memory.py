"""Error message for a job that ran out of memory, with the settings to lower."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copra.utils.errors import CopraError

ANSWERING: dict[str, tuple[str, ...]] = {"evaluation.batch_size": ("batch_size",)}
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        f"training.{key}": ("training", key)
        for key in ("micro_batch_tokens", "micro_batch_size", "batch_size")
    },
    "evaluate": ANSWERING,
    "sweep-latents": ANSWERING,
    "swap-latents": ANSWERING,
    "logit-lens": ANSWERING,
    "curve": ANSWERING | {"importance.batch_size": ("loss_batch_size",)},
    "score": {
        "importance.batch_size": ("importance", "batch_size"),
        "importance.gates.batch_size": ("importance", "gates", "batch_size"),
    },
    "latency": {"latency.batch_size": ("batch_size",)},
}
"""Config keys that determine a command's use of memory, with their paths in its settings."""
SIGNS = ("CUDA out of memory", "HIP out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """True for torch's OutOfMemoryError, its RuntimeError on a CPU, and Python's MemoryError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS))
    )


def explained(command: str, options: Namespace, error: Exception) -> CopraError:
    """Return the error for the user: the settings to lower, with their current values."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    known = _settings(options)
    values = {name: _value(known, path) for name, path in SIZES.get(command, {}).items()}
    sizes = ", ".join(f"{name} (now {value})" for name, value in values.items() if value != "")
    advice = "Give the job more memory (compute.memory_mb), or a GPU with more of it"
    if command == "train":
        advice = (
            "Set training.micro_batch_tokens to the longest row's tokens or a few times that, or "
            "training.micro_batch_size to a divisor of the batch: gradients are accumulated and results stay "
            "the same but for rounding. If one row is too much, set compute.precision: bfloat16, lower "
            "training.max_tokens, or share the weights out (compute.sharding)"
        )
    elif sizes:
        advice = "Halve it until the job fits; results stay the same but for rounding"
    if getattr(options, "jobs_per_gpu", 1) > 1:
        advice += f". {options.jobs_per_gpu} jobs share the GPU: lower compute.jobs_per_gpu"
    return CopraError(f"{sizes or 'memory'}: the job ran out of memory ({first}). {advice}.")


def _settings(options: Namespace) -> Mapping[str, Any]:
    text = getattr(options, "settings", "{}")
    return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)


def _value(settings: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path of keys, "" if there is none, "null" for a size that is not set."""
    for key in path:
        if not isinstance(settings, Mapping) or key not in settings:
            return ""
        settings = settings[key]
    return "null" if settings is None else settings
