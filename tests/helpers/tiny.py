"""The tiny experiment: a Llama of two layers, sums in words, and one chain-of-thought training."""

from typing import Any

SIZES = {
    "hidden_size": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
}
TRAINING = {"steps": 4, "batch_size": 16, "learning_rate": 3.0e-3, "num_validations": 1}
DROP = {"kind": "prune", "unit": "layers", "metric": "cosine", "budget": {"count": 1}}
CONFIG = {
    "task": "sums",
    "tasks": {"sums": {"kind": "word_sums", "train": 100, "valid": 20, "test": 40}},
    "base": "llama",
    "bases": {"llama": {"from_scratch": SIZES}},
    "steps": {"cot": {"kind": "cot", "training": TRAINING}},
    "recipes": [["cot"]],
    "latency": None,  # times are never the same twice
}

YAML = """\
task: sums
tasks: {sums: {kind: word_sums}}
base: llama
bases: {llama: {from_scratch: {hidden_size: 16, layers: 2, heads: 4, intermediate_size: 32}}}
steps: {cot: {kind: cot, training: {steps: 8}}}
recipes: [[cot]]
"""
"""An experiment as a person writes it."""


def own(value: Any) -> Any:
    """Return a copy of nested dicts and lists that shares none of them, not even with itself."""
    if isinstance(value, dict):
        return {key: own(inner) for key, inner in value.items()}
    return [own(inner) for inner in value] if isinstance(value, list) else value


def set_paths(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a copy of a config with values set by path, as in steps__cot__kind="cot"."""
    config = own(config)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = config
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = own(value)
    return config


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Return the tiny experiment with values set by path; see `set_paths`."""
    return set_paths(CONFIG, **changes)
