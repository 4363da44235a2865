"""Save and load the state of an unfinished training, so that a killed stage resumes.

A state is a folder `step-N` in the stage's state folder: model and optimizer in safetensors, the rest in
JSON. It is written in one rename. The previous state is kept in case the newest is damaged.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from copra.training.sharding import gather_full, reshard_like
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import digest, file_sha256, read_json, replacing, write_json

TENSORS = "state.safetensors"
RECORD = "state.json"


def save_state(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Save everything that the next step depends on, then delete all other states but the one before.

    All processes must call it; the first one writes.
    """
    tensors = {f"model.{name}": value for name, value in full_state_dict(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": gather_full(value) for key, value in state.items()}
    if processes.rank():
        return
    target = folder / f"step-{step:09d}"
    with replacing(target) as temporary:
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / TENSORS)
        complete = {**record, "step": step, "sha256": file_sha256(temporary / TENSORS)}
        write_json(temporary / RECORD, {**complete, "digest": digest(complete)})
    # A state with a later step must be damaged: otherwise training would have resumed from it.
    others = sorted(state for state in folder.glob("step-*") if state != target)
    before = [state for state in others if state < target]
    for state in others:
        if state not in before[-1:]:
            shutil.rmtree(state)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest intact state into model and optimizer, and return its record.

    Return None if there is no state. Damaged states are skipped.
    """
    for state in sorted(folder.glob("step-*"), reverse=True):
        record = _whole_record(state)
        if record is None:
            continue
        tensors = load_file(state / TENSORS)
        load_tensors(model, _part(tensors, "model."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, own in moments.items():
            moments[number] = {
                key: reshard_like(parameters[number], value) if value.dim() else value
                for key, value in own.items()
            }
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return record
    return None


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a module by name, unsharded, tied weights once under their first name.

    All processes must call it.
    """
    once = {name for name, _ in module.named_parameters()}
    twice = {name for name, _ in module.named_parameters(remove_duplicate=False)} - once
    return {name: gather_full(value) for name, value in module.state_dict().items() if name not in twice}


def load_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load tensors from `full_state_dict` into a module, sharded as the module is."""
    own = module.state_dict()
    module.load_state_dict(
        {name: reshard_like(own[name], value) for name, value in tensors.items()}, strict=False
    )


def _whole_record(state: Path) -> dict[str, Any] | None:
    """Return the record of a state; None if a file is missing, truncated or does not match its checksum."""
    with contextlib.suppress(CopraError, OSError, ValueError):
        record = read_json(state / RECORD)
        if not isinstance(record, dict) or record.pop("digest", None) != digest(record):
            return None
        if file_sha256(state / TENSORS) == record["sha256"]:
            return record
    return None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
