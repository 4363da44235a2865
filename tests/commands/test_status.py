"""copra status: its page, from files as a run leaves them."""

import json
import shutil
import socket
import time

import pytest
import yaml

from copra.cli import main
from copra.utils import heartbeat as watch
from helpers.tiny import TRAINING, tiny_config

NO_COT = {"kind": "no_cot", "training": TRAINING}
CONFIG = tiny_config(**{"steps__no-cot": NO_COT}, recipes=[["cot"], ["no-cot"]])
GONE = 2**22 + 1


def status(capsys, *arguments):
    assert main(["status", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def results(tmp_path):
    """A run under way: one training runs, one was killed, one has failed, and one is done."""
    now = time.time()
    running, killed = (tmp_path / "state" / name for name in ("a" * 16, "b" * 16))
    running.mkdir(parents=True)
    watch.start_heartbeat(running, "llama@0+cot", 1000)
    ticks = [{"step": 100 * heartbeat, "time": now - 50 + 10 * heartbeat} for heartbeat in range(1, 6)]
    (running / watch.SPEED).write_text("".join(json.dumps(line) + "\n" for line in ticks))
    (running / watch.LOG).write_text('{"step": 498, "loss": 0.25, "learning_rate": 0.00125}\n{"step"')
    (killed / "step-000000020").mkdir(parents=True)
    run = {"node": "llama@1+cot", "total": 300, "unit": "steps", "started": now - 900}
    (killed / watch.RUN).write_text(json.dumps(run | {"host": socket.gethostname(), "process": GONE}))
    (killed / watch.SPEED).write_text(json.dumps({"step": 27, "time": now - 780}) + "\n")
    log = tmp_path / "logs" / "train" / "llama@0+no-cot.log"
    log.parent.mkdir(parents=True)
    log.write_text("copra train: no train row fits\n")
    for made in ("models/llama@0/copra.json", "data/sums/train.json"):
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).write_text("")
    return tmp_path


def test_the_page(results, capsys):
    lines = [" ".join(line.split()) for line in status(capsys, "--results", results).splitlines()]
    # 10 steps per second, and 500 to go.
    running = "llama@0+cot 500 of 1,000 steps 50% 0.2500 1.25e-03 10/s 50 s"
    killed = results / "state" / ("b" * 16)
    stopped = f"llama@1+cot 27 of 300 steps 9% 13 min ago; run again, it goes on after step 20 ({killed})"
    assert running in lines
    assert stopped in lines
    assert "train/llama@0+no-cot: copra train: no train row fits" in lines


def test_with_a_config_jobs_are_counted(results, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    text = status(capsys, tmp_path / "c.yaml", "--results", results)
    assert f"{tmp_path}/c.yaml: 1 of 16 files are there\n" in text
    assert "models 1 of 6, evaluations 0 of 2, tables 0 of 4, figures 0 of 4" in text


def test_without_a_config_all_experiments_here_are_shown(results, capsys, tmp_path, monkeypatch):
    place = tmp_path / "place"
    for name in ("first", "second"):
        shutil.copytree(results, place / "results" / name, ignore=shutil.ignore_patterns("place"))
    (place / "first.yaml").write_text(yaml.safe_dump(CONFIG))
    (place / "other.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "second"}))
    monkeypatch.chdir(place)
    shown = {name: f"Running in results/{name}:\n" in status(capsys) for name in ("first", "second", "third")}
    assert shown == {"first": True, "second": True, "third": False}
    for config, name in (("first.yaml", "first"), ("other.yaml", "second")):
        text = status(capsys, config)
        assert f"{config}: 1 of 16 files are there\n" in text
        assert text.count("Running in ") == text.count(f"Running in results/{name}:\n") == 1


def test_nothing_runs(capsys, tmp_path):
    expected = f"Nothing that tells its progress runs in {tmp_path}.\n"
    assert status(capsys, "--results", tmp_path) == expected


def test_watching_ends_with_ctrl_c(results, capsys, monkeypatch):
    shown = []

    def sleep(seconds):
        shown.append(seconds)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("copra.commands.status.time.sleep", sleep)
    text = status(capsys, "--results", results, "--watch", "0.5")
    assert shown == [0.5] * 3
    assert text.count("llama@0+cot ") == 3
    assert "\x1b" not in text
    assert main(["status", "--watch", "0"]) == 1
