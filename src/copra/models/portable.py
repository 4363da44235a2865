"""Mark checkpoints that plain generation would answer wrongly, so that no other program answers so silently.

The config of such a checkpoint names copra's own class, whose code lies beside it (`copra.models.thinking`):
transformers loads it with `trust_remote_code=True`, and refuses to load it without. copra itself reads the
ordinary config of which that one was made.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from copra.data.sequences import GenerationSpec
from copra.models.families.family import PREFIX
from copra.models.looping import settings_by_layer
from copra.models.per_layer import CLASSES

CONFIG = "config.json"
CODE = ("per_layer.py", "thinking.py", "networks.py", "visits.py", "hooks.py", "rollout.py")
"""The files that travel with a checkpoint, which import only libraries and each other."""


def answers_plainly(decoding: GenerationSpec | None) -> bool:
    """True if a checkpoint answers by plain generation after its prompt (or not at all)."""
    if decoding is None:
        return True
    return not (decoding.added_tokens or decoding.emulated or decoding.loop is not None)


def mark(folder: Path, decoding: GenerationSpec | None, visits: list[int] | None) -> None:
    """Mark a saved checkpoint, if its decoding needs that; `visits` are those of its loop, if it has one."""
    if decoding is None or answers_plainly(decoding):
        return
    config = json.loads((folder / CONFIG).read_text())
    plain_type = None if config["model_type"].startswith(PREFIX) else config["model_type"]
    model_type = config["model_type"].removeprefix(PREFIX)
    own_config, _, own_model = CLASSES[model_type]
    config |= {
        "model_type": own_config.model_type,
        "architectures": [own_model.__name__],
        "auto_map": {
            "AutoConfig": f"per_layer.{own_config.__name__}",
            "AutoModelForCausalLM": f"per_layer.{own_model.__name__}",
        },
        "thinking": {
            "prefix_ids": list(decoding.prefix_ids),
            "latents": decoding.latents,
            "latent_token": decoding.latent_token,
            "suffix_ids": list(decoding.suffix_ids),
            "feed": decoding.latent_input if decoding.has_recurrent_latents else None,
            "iterations": decoding.jacobi_iterations,
            "networks": list(decoding.extra_modules),
            "visits": visits,
            "by_layer": list(settings_by_layer(model_type)),
            "plain_type": plain_type,
        },
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    for name in CODE:
        shutil.copyfile(Path(__file__).parent / name, folder / name)


def unmarked_config(folder: Path) -> PreTrainedConfig | None:
    """Return the ordinary config of a marked checkpoint; None if it is not marked."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return unmarked(config) if isinstance(config, dict) else None


def unmarked(config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """Return the ordinary config that a marked one was made of; None if it is not marked."""
    thinking = config.get("thinking")
    if thinking is None:
        return None
    config = {key: value for key, value in config.items() if key != "thinking"}
    model_type = thinking["plain_type"]
    if model_type is None:
        return CLASSES[config["model_type"].removeprefix(PREFIX)][0](**config)
    plain = CONFIG_MAPPING[model_type]
    own = {"auto_map", "layer_overrides", "head_dim"} - set(plain.__dataclass_fields__)
    kept = {key: value for key, value in config.items() if key not in own}
    names = [name.removeprefix("Copra") for name in config["architectures"]]
    return plain(**{**kept, "model_type": model_type, "architectures": names})
