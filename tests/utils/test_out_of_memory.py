"""A verb that runs out of memory ends with a message that names the settings to lower."""

import json

import pytest
import torch

from copra.cli import COMMANDS, main
from copra.experiment.config import Experiment
from copra.utils.out_of_memory import SIZES, is_out_of_memory

ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB"
SETTINGS = {
    "train": {
        "training": {"steps": 1, "batch_size": 64, "micro_batch_size": None, "micro_batch_tokens": 4096}
    },
    "evaluate": {"batch_size": 500},
    "sweep-latents": {"batch_size": 500},
    "swap-latents": {"batch_size": 500},
    "logit-lens": {"batch_size": 500},
    "curve": {"batch_size": 500, "loss_batch_size": 16},
    "score": {"importance": {"batch_size": 16}},
    "latency": {"batch_size": 64},
}
NAMED = {
    "train": "training.micro_batch_tokens (now 4096), training.micro_batch_size (now null), "
    "training.batch_size (now 64): the job ran out of memory",
    "evaluate": "evaluation.batch_size (now 500): the job ran out of memory",
    "sweep-latents": "evaluation.batch_size (now 500)",
    "swap-latents": "evaluation.batch_size (now 500)",
    "logit-lens": "evaluation.batch_size (now 500)",
    "curve": "evaluation.batch_size (now 500), importance.batch_size (now 16)",
    "score": "importance.batch_size (now 16)",
    "latency": "latency.batch_size (now 64)",
    "prune": "memory: the job ran out of memory",
}


def run(monkeypatch, capsys, verb: str, error: Exception, *words: str) -> tuple[int, str]:
    """Status and message of a verb whose work fails."""

    def fail(_):
        raise error

    def arguments(parser):
        parser.add_argument("--settings", default=json.dumps(SETTINGS.get(verb, {})))
        parser.add_argument("--jobs-per-gpu", type=int, default=1)

    module = "copra.commands." + verb.replace("-", "_")
    monkeypatch.setattr(f"{module}.run", fail)
    monkeypatch.setattr(f"{module}.arguments", arguments)
    return main([verb, *words]), capsys.readouterr().err


@pytest.mark.parametrize("verb", NAMED)
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(ON_GPU), RuntimeError(ON_CPU), MemoryError()],
    ids=["GPU", "CPU", "Python"],
)
def test_the_settings_to_lower_are_named_with_their_values(monkeypatch, capsys, verb, error):
    status, message = run(monkeypatch, capsys, verb, error)
    assert status == 1
    assert message.startswith(f"copra {verb}: {NAMED[verb]}")
    assert message.count("\n") == 1


def test_settings_in_a_file_are_read(monkeypatch, capsys, tmp_path):
    (tmp_path / "settings.json").write_text('{"batch_size": 7}')
    words = ("--settings", f"@{tmp_path / 'settings.json'}")
    assert "(now 7)" in run(monkeypatch, capsys, "evaluate", MemoryError(), *words)[1]


def test_jobs_that_share_a_gpu_are_named_too(monkeypatch, capsys):
    message = run(monkeypatch, capsys, "evaluate", MemoryError(), "--jobs-per-gpu", "3")[1]
    assert message.endswith("3 jobs share the GPU: lower compute.jobs_per_gpu.\n")


def test_other_errors_stay_what_they_are(monkeypatch, capsys):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(monkeypatch, capsys, "train", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_torch_raises_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_named_settings_exist():
    sections = Experiment.model_json_schema()["$defs"]
    for verb, names in SIZES.items():
        assert verb in COMMANDS
        for name in names:
            section, *_, key = name.split(".")
            kind = "Gates" if "gates" in name else section.capitalize()
            assert key in sections[kind]["properties"], name
