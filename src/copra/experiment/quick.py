"""A config shrunk to a run of a minute or two, which touches every rule that the whole run does.

Its numbers mean nothing. Recipes, prunings, methods, tables and figures stay; rows, steps and answers become
few, and what would have to be fetched is replaced: published models by small ones, rows on the Hub by
generated ones.
"""

from collections.abc import Mapping
from copy import deepcopy
from math import ceil
from typing import Any

from copra.methods.icot_si import IcotSi
from copra.models.published_configs import PUBLISHED_CONFIGS
from copra.tasks.generated import DrawnTask
from copra.tasks.registry import ALL_TASKS

ROWS = {"train": 96, "valid": 12, "test": 16}
LEAST: dict[str, int] = {
    "steps": 3,
    "batch_size": 8,
    "warmup_steps": 1,
    "num_validations": 1,
    "rows": 16,
    "validation_rows": 8,
    "max_new_tokens": 8,
    "limit": 16,
    "forced_tokens": 4,
    "questions": 4,
    "repetitions": 1,
    "lens": 2,
    "save_every_steps": 3,
}
"""The greatest value of each of these keys, wherever it stands."""
DROPPED = ("epochs", "stop_early", "micro_batch_size", "micro_batch_tokens", "steps_per_stage")
"""Keys of a training that are left out: few steps take the place of what they say."""
GENERATED = {"kind": "word_sums", "min_steps": 2, "max_steps": 4, **ROWS}
"""The task in place of rows on the Hub."""
LAYERS = 12
"""The most layers of a small model in place of a published one."""


def quick(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a shrunk config of an experiment of this name; `config` is as its files have it.

    The small models in place of published ones are those that the configs of `stand_ins` make.
    """
    small: dict[str, Any] = deepcopy(dict(config))
    small["name"] = f"{small.get('name') or name}-quick"
    small["tasks"] = {key: _task(task) for key, task in small.get("tasks", {}).items()}
    small["bases"] = {
        key: {"path": _stand_in(small["name"], key)} if _is_published(base) else base
        for key, base in small.get("bases", {}).items()
    }
    small["steps"] = {key: _step(step) for key, step in small.get("steps", {}).items()}
    for key in ("importance", "evaluation", "latency", "conversions"):
        if isinstance(small.get(key), Mapping):
            small[key] = _few(small[key])
    small["importance"] = {
        "rows": LEAST["rows"],
        "validation_rows": LEAST["validation_rows"],
        **small.get("importance", {}),
    }
    small["importance"].pop("text", None)
    small["seeds"] = list(small.get("seeds", [0]))[:1]
    small["compute"] = {"threads": 1}
    small.pop("tracking", None)
    return small


def _few(value: Any) -> Any:
    """Return a value with the numbers of `LEAST` lowered, at any depth."""
    if isinstance(value, Mapping):
        return {
            key: min(each, LEAST[key]) if key in LEAST and _is_number(each) else _few(each)
            for key, each in value.items()
        }
    return [_few(each) for each in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    if task.get("kind") in ("gsm8k", "rows"):
        if task.get("source") == "files" or (task["kind"] == "rows" and not task.get("hub_name")):
            has_rows = task["kind"] == "gsm8k" or "validation_rows" in task
            few = {"validation_rows": ROWS["valid"]} if has_rows else {}
            return {**task, **few, "limit": {**ROWS, **_lower(task.get("limit", {}), ROWS)}}
        return GENERATED
    if not issubclass(ALL_TASKS.get(task.get("kind", ""), DrawnTask), DrawnTask):
        return {**task, "limit": {**ROWS, **_lower(task.get("limit", {}), ROWS)}}
    return {**task, **ROWS, **_lower({key: task[key] for key in ROWS if _is_number(task.get(key))}, ROWS)}


def _lower(values: Mapping[str, Any], most: Mapping[str, int]) -> dict[str, Any]:
    return {key: min(value, most[key]) for key, value in values.items()}


def stand_ins(config: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Return, by manifest, the configs that make the small models which `quick` names."""
    whole = f"{config.get('name') or name}-quick"
    return {
        f"{_stand_in(whole, key)}/copra.json": {
            "name": f"{whole}-{key}",
            "task": "sums",
            "tasks": {"sums": GENERATED},
            "base": key,
            "bases": {key: _small(base, _needs_bytes(config))},
            "steps": {
                "cot": {"kind": "cot", "training": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}}
            },
            "recipes": [["cot"]],
        }
        for key, base in config.get("bases", {}).items()
        if _is_published(base)
    }


def _is_published(base: Mapping[str, Any]) -> bool:
    """Return True if a base would have to be fetched, or is large."""
    return base.get("path") is not None


def _stand_in(experiment: str, base: str) -> str:
    """Return the folder of the small model in place of a base."""
    return f"results/{experiment}-{base}/models/{base}@0"


def _needs_bytes(config: Mapping[str, Any]) -> bool:
    """Return True if models become GGUF files, which need a byte-level tokenizer."""
    formats = (config.get("conversions") or {}).get("formats", [])
    return any(str(format).startswith("gguf") for format in formats)


def _small(base: Mapping[str, Any], needs_bytes: bool) -> dict[str, Any]:
    """Return a base from scratch that is as deep as a published one."""
    published = PUBLISHED_CONFIGS.get(str(base["path"]), {})
    is_gpt2 = published.get("model_type") == "gpt2"
    return {
        "from_scratch": {
            "architecture": "gpt2" if is_gpt2 else "llama",
            "hidden_size": 64,
            "layers": min(LAYERS, published.get("num_hidden_layers", published.get("n_layer", LAYERS))),
            "heads": 8,
            "kv_heads": None if is_gpt2 else 4,
            "intermediate_size": 256,
            "tokenizer": "bpe" if needs_bytes else "words",
        }
    }


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    few: dict[str, Any] = _few(step)
    if few.get("kind") == "icot_si":
        few |= _fewer_tokens(step)
    if isinstance(few.get("training"), Mapping):
        few["training"] = {key: value for key, value in few["training"].items() if key not in DROPPED}
        few["training"]["steps"] = LEAST["steps"]
    if isinstance(few.get("overrides"), Mapping):
        stages = {key: {**stage, "steps": LEAST["steps"]} for key, stage in few["overrides"].items()}
        few["overrides"] = {
            key: {name: value for name, value in stage.items() if name not in DROPPED}
            for key, stage in stages.items()
        }
    return few


def _fewer_tokens(step: Mapping[str, Any]) -> dict[str, int]:
    """Return settings by which iCoT-SI has as many stages as before, each of one token per optimizer step."""
    keys = ("tokens_per_stage", "remove_all_beyond")
    tokens, beyond = (step.get(key, IcotSi.model_fields[key].default) for key in keys)
    few = min(tokens, LEAST["steps"])
    return dict(zip(keys, (few, few * ceil(beyond / tokens)), strict=True))
