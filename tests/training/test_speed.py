"""The speed of a training, by hand."""

import json
import re

import pytest
import torch

from copra.cost.flops import of_training_work
from copra.methods.reasoning_model import ReasoningModel
from copra.models.shape import shape_of
from copra.training import speed as module
from copra.training.progress import Progress
from copra.training.speed import Speed, peak_tflops
from copra.utils import heartbeat as watch


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7),
        ("NVIDIA H100 PCIe", "bfloat16", 756.4),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("NVIDIA L40S", "bfloat16", 362.1),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("Tesla T4", "float32", 8.1),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA GH200 480GB", "bfloat16", 989.4),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 3090", "bfloat16", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(device, precision, peak):
    assert peak_tflops(device, precision) == peak


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_rates_are_those_since_the_last_call(make_trainer, clock):
    trainer = make_trainer("healed")
    reasoner = ReasoningModel(trainer.model, trainer.extra_modules, trainer.teacher)
    progress = Progress(work={"model": [1000, 9000, 500], "teacher": [1000, 9000, 500]})
    speed = Speed(reasoner, 0, "float32")
    speed.start(progress)
    progress.work = {"model": [1300, 9900, 600], "teacher": [1200, 9400, 550]}
    clock[0] += 2
    rates = speed.rates(progress)
    assert rates == speed.latest
    assert rates["tokens_per_second"] == (300 + 200) / 2
    work = {
        "model": {"tokens": 300, "context": 900, "supervised": 100},
        "teacher": {"tokens": 200, "context": 400, "supervised": 50},
    }
    shapes = (shape_of(each.config.to_dict()) for each in (reasoner.model, reasoner.teacher.model))
    student, teacher = shapes
    assert rates["tflops"] == pytest.approx(of_training_work(student, work, 0, teacher) / 2 / 1e12)
    assert rates["peak_gib"] > 0
    assert "mfu" not in rates
    clock[0] += 1
    assert speed.rates(progress)["tokens_per_second"] == 0


def test_a_gpu_tells_its_use_and_its_memory(make_trainer, clock, monkeypatch):
    trainer = make_trainer()
    reasoner = ReasoningModel(trainer.model)
    monkeypatch.setattr(ReasoningModel, "device", torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 3 * 2**30)
    speed = Speed(reasoner, 0, "bfloat16", processes=2)
    speed.start(Progress())
    clock[0] += 1
    rates = speed.rates(Progress(work={"model": [10**6, 10**8, 10**6]}))
    assert rates["mfu"] == pytest.approx(rates["tflops"] / 989.4 / 2)
    assert rates["peak_gib"] == 3
    assert re.fullmatch(
        r"1,000,000 tokens/s, [\d.e+-]+ TFLOP/s, MFU \d+\.\d%, peak 3\.0 GiB", watch.in_words(rates)
    )


def test_a_training_tells_its_speed_to_those_who_watch_and_not_in_its_record(make_trainer):
    trainer = make_trainer(state="results/state/job")
    trainer.state.mkdir(parents=True)
    heard = []

    class Tracker:
        def log(self, line, step):
            heard.extend(watch.running(trainer.state.parent.parent))

    trainer.tracker = Tracker()
    trainer.run()
    assert heard[0].rates["tokens_per_second"] > 0
    assert "tokens/s" in watch.in_words(heard[0].rates)
    assert all("tokens_per_second" not in json.loads(line) for line in trainer.log_text().splitlines())
