"""Check a local base by its file names and its config.json, before any weight is read."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copra.schema.base import Base
from copra.tasks.task import expand_path
from copra.utils.problems import shown_path

INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tiktoken", "tekken")
"""Substrings of the names of tokenizer files, in Hugging Face form and in the vendors' own."""
TO_SAFETENSORS = (
    "from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{0}', weights_only=True).save_pretrained('{0}')"
)
MERGE = (
    "from peft import AutoPeftModelForCausalLM as M; "
    "M.from_pretrained('{0}').merge_and_unload().save_pretrained('{0}-merged')"
)


def base_problem(base: Base) -> str | None:
    """Return the problem of a local base's files; None if there is none, or they do not exist (yet)."""
    if (file := base.gguf) is not None:
        return _gguf_problem(file)
    if base.local is not None and base.local.is_file():
        return f"path: {_path(base)} is a file. Give the folder that it is in, or a .gguf file."
    if base.folder is None:
        return None
    problem = _folder_problem(base.folder)
    return problem and f"path: {_path(base)} {problem}"


def absence_problem(base: Base) -> str | None:
    """Return an error message if a base's path can only be local and does not exist; else None."""
    if base.path is None or base.local is None or base.local.exists():
        return None
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", base.path) and not base.path.endswith(".gguf"):
        return None
    expand_path("path", base.path)
    return f"path: {_path(base)} is not there. Give a local folder, a .gguf file, or a Hub id such as gpt2."


def _path(base: Base) -> str:
    """Return the path of a base as written in the config."""
    return shown_path(repr(base.path))


def quantization_problem(config: Mapping[str, Any]) -> str | None:
    """Return an error message with the method if a config's weights are quantized; else None."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    method = settings.get("quant_method", "an unnamed method")
    return (
        f"has weights quantized by {method}, which can be neither trained, scored nor pruned. Take the model "
        "in full precision, and quantize last with a step of kind quantize."
    )


def _gguf_problem(file: Path) -> str | None:
    found = importlib.util.find_spec("gguf")
    if found is None or found.origin is None:  # a folder named gguf is also found, without an origin
        return f"path: {file.name!r} is a GGUF file, which needs the package gguf. Run pip install gguf."
    return None


def _folder_problem(folder: Path) -> str | None:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if "adapter_config.json" in names:
        return (
            f"is a LoRA adapter (it has adapter_config.json), not a whole model. Merge it first: python -c "
            f'"{MERGE.format(folder)}", and copy the tokenizer there; or remove that file if it is merged.'
        )
    if "config.json" not in names:
        return f"has no config.json. {_without_config(folder, names)}"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping of keys to values")
    except (OSError, ValueError) as error:
        return f"has a config.json that cannot be read ({error}). Take a complete copy of the model."
    return quantization_problem(config) or _weights_problem(folder, names) or _tokenizer_problem(names)


def _without_config(folder: Path, names: list[str]) -> str:
    """Return the next step for a folder without a config.json."""
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"To use its GGUF file, name it: path: {folder / gguf[0]}."
    if "rest.tar" in names and "copra.json" in names:
        return f"It is a packed checkpoint of copra: run tar xf rest.tar in {folder}."
    return (
        "Give a folder in Hugging Face form: config.json, tokenizer.json and model.safetensors side by side, "
        "as save_pretrained writes them."
    )


def _weights_problem(folder: Path, names: list[str]) -> str | None:
    if any(name.endswith(".safetensors") for name in names):
        return _shards_problem(folder, names)
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickles:
        return (
            f"has its weights in {pickles[0]}, a pickle, which could run code when it is opened. If you "
            f'trust it, convert it once: python -c "{TO_SAFETENSORS.format(folder)}".'
        )
    return "has no weights (no file *.safetensors). Take a complete copy of the model."


def _tokenizer_problem(names: list[str]) -> str | None:
    if any(any(word in name for word in TOKENIZERS) for name in names):
        return None
    return "has no tokenizer (no tokenizer.json). Copy it from the model that this one was made of."


def _shards_problem(folder: Path, names: list[str]) -> str | None:
    """Return an error message with the shards that an index lists and the folder lacks; else None."""
    if INDEX not in names or "model.safetensors" in names:
        return None
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"has a {INDEX} that cannot be read ({error}). Take a complete copy of the model."
    absent = sorted(shards - set(names))
    if not absent:
        return None
    return f"lacks {len(absent)} of {len(shards)} shards ({', '.join(absent[:3])}). Take a complete copy."
