"""Hints about the machine and the Hub."""

import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import LlamaConfig

from copra.plan import surroundings as module
from copra.plan.surroundings import disk_note, surroundings, torch_build
from copra.utils.errors import CopraError
from copra.utils.gpu import VISIBLE


@pytest.fixture
def hub(monkeypatch):
    """A Hub that raises the errors of names, and the names that it was asked for."""
    hub = SimpleNamespace(errors={}, asked=[])

    def ask(name, repo_type):
        hub.asked.append((name, repo_type))
        if name in hub.errors:
            raise hub.errors[name]

    monkeypatch.setattr(huggingface_hub, "auth_check", ask)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return hub


@pytest.fixture
def published(make_workflow, monkeypatch, tmp_path):
    """An experiment with a base and rows on the Hub, neither of them in its cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return make_workflow(
        bases={"llama": {"path": "someone/model"}},
        tasks={"sums": {"kind": "gsm8k", "hub_name": "someone/rows"}},
    ).experiment


def test_what_may_be_read_is_no_note(hub, published):
    assert surroundings(published) == []
    assert hub.asked == [("someone/model", "model"), ("someone/rows", "dataset")]


def test_what_may_not_be_read_is_told_before_the_run(hub, published):
    hub.errors = {
        "someone/model": GatedRepoError("gated", response=MagicMock()),
        "someone/rows": RepositoryNotFoundError("private", response=MagicMock()),
    }
    with pytest.raises(CopraError) as error:
        surroundings(published)
    assert str(error.value).splitlines() == [
        "bases.llama.path: 'someone/model' is gated. Ask for access at https://huggingface.co/someone/model, "
        "then log in: hf auth login",
        "tasks.sums.hub_name: the Hub has no 'someone/rows' that you may read. Check the name; if it is "
        "private, log in: hf auth login",
    ]


def test_without_a_network_it_is_a_note(hub, published, monkeypatch):
    hub.errors = {"someone/model": OSError("no route")}
    (note,) = surroundings(published)
    assert note == "bases.llama.path: the Hub could not be asked for 'someone/model' (no route)."
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    hub.asked.clear()
    assert surroundings(published) == []
    assert hub.asked == []


def test_what_is_here_is_not_asked_for(hub, make_workflow, tmp_path):
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config.save_pretrained(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    for changes in ({}, {"bases": {"llama": {"path": str(tmp_path)}}}):
        assert surroundings(make_workflow(**changes).experiment) == []
    assert hub.asked == []


@pytest.mark.parametrize(
    ("wanted", "here", "build", "note"),
    [
        (0, "", False, None),
        (1, "0", True, None),
        (0, "0", True, None),
        (
            1,
            "",
            True,
            "compute.gpu is 1, and this machine has no GPU: jobs that run here compute on the CPU.",
        ),
        (2, "0", True, "compute.gpu is 2, and this machine has 1 of them: jobs that run here are refused."),
        (1, "", False, "torch 2.13.0+cpu is a build for CPUs, so that no job will compute on a GPU."),
        (0, "0", False, "torch 2.13.0+cpu is a build for CPUs, so that no job will compute on a GPU."),
    ],
)
def test_gpus_and_a_torch_for_them(make_workflow, monkeypatch, wanted, here, build, note):
    monkeypatch.setenv(VISIBLE, here)
    monkeypatch.setattr(module, "torch_build", lambda: ("2.13.0+cpu", build))
    found = surroundings(make_workflow(compute={"gpu": wanted}).experiment)
    assert len(found) == (note is not None)
    assert not note or found[0].startswith(note)


def test_packages_for_conversions_are_told_where_they_are_missing(make_workflow, monkeypatch):
    wanted = {"recipes": ["llama+cot"], "formats": ["executorch-f32"]}
    experiment = make_workflow(recipes=[["cot"]], reference=None, conversions=wanted).experiment
    monkeypatch.setattr("copra.schema.conversion.find_spec", lambda module: None)
    (note,) = surroundings(experiment)
    assert note == (
        "conversions.formats: needs packages that are not here: pip install 'executorch>=1.5.1,<1.6'"
    )
    monkeypatch.setattr("copra.schema.conversion.find_spec", lambda module: module)
    assert surroundings(experiment) == []


@pytest.mark.slow
def test_the_build_of_torch_is_known_without_its_import():
    import torch

    version, has_gpu = torch_build()
    assert version == torch.__version__
    assert has_gpu == bool(torch.version.cuda or torch.version.hip)


def test_too_little_room_is_told(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=2e9)
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or usage)
    # The folder of the results need not be there yet.
    folder = tmp_path / "results" / "mine"
    assert disk_note(folder, 1.9e9) is None
    assert asked == [tmp_path]
    assert disk_note(folder, 2.5e9) == (
        f"2.5 GB are needed in {folder}, and 2 GB are free. Free some space, or link the folder to a larger "
        "disk."
    )
