"""The state of a training under way, saved so that a killed stage goes on where it was.

A state is a folder `step-N` in the stage's state folder: model and optimizer in safetensors, the rest
in JSON. It appears by one rename; the one before goes only after that.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from copra.errors import CopraError
from copra.files import digest, file_sha256, read_json, replacing, write_json

TENSORS = "state.safetensors"
RECORD = "state.json"


def save_state(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Save everything that the next step depends on, then forget the older state."""
    tensors = {f"model.{name}": value for name, value in _unique(model.state_dict()).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    target = folder / f"step-{step:09d}"
    with replacing(target) as temporary:
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / TENSORS)
        complete = {**record, "step": step, "sha256": file_sha256(temporary / TENSORS)}
        write_json(temporary / RECORD, {**complete, "digest": digest(complete)})
    for older in folder.glob("step-*"):
        if older != target:
            shutil.rmtree(older)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model, optimizer and random numbers back to the newest whole state; returns its record.

    None where there is no state. A state that is not whole is passed over.
    """
    for state in sorted(folder.glob("step-*"), reverse=True):
        record = _whole_record(state)
        if record is None:
            continue
        tensors = load_file(state / TENSORS)
        model.load_state_dict(_part(tensors, "model."), strict=False)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        return record
    return None


def _whole_record(state: Path) -> dict[str, Any] | None:
    """The record of a state; None where a file is missing, cut short or does not match its checksum."""
    with contextlib.suppress(CopraError, OSError, ValueError):
        record = read_json(state / RECORD)
        if not isinstance(record, dict) or record.pop("digest", None) != digest(record):
            return None
        if file_sha256(state / TENSORS) == record["sha256"]:
            return record
    return None


def _unique(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without second names of one storage (tied weights): safetensors wants each once."""
    seen: set[int] = set()
    unique = {}
    for name, value in state.items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            unique[name] = value
    return unique


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
