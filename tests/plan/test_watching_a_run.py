"""A run as people follow it, from what Snakemake tells and the files of its jobs."""

import json
import logging
import re
import time
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from copra.plan import watch as module
from copra.plan.watch import Watch, result_of
from copra.utils import heartbeat
from snakemake_logger_plugin_copra import LogHandler

MANIFEST = {"parameters": 84480, "lineage": [{"step": "cot", "record": {"steps": 1125}}]}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def watch(clock, tmp_path, monkeypatch):
    """A run of four jobs whose forecast is there."""
    watch = Watch()
    forecast = {"data/sums/train": 10.0, "train/a@0+cot": 30.0, "evaluate/a@0+cot": 20.0, "page": 1.0}
    monkeypatch.setattr(module._Forecast, "__init__", lambda self, configs: None)
    monkeypatch.setattr(module._Forecast, "seconds", lambda self: forecast)
    monkeypatch.setattr(module._Forecast, "close", lambda self: None)
    watch.configs = ["config.yaml"]
    assert watch.begun({"data": 1, "train": 1, "evaluate": 1, "page": 1, "all": 1, "total": 5}) == (
        "4 jobs: 1 data, 1 train, 1 evaluate, 1 page"
    )
    return watch


def start(watch, number, key, folder, output="x.json", content=None):
    """Start a job; its output is written with a content."""
    path = folder / output
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    watch.started(number, [f"{folder}/logs/{key}.log"], [str(path)], None)


def test_each_job_is_a_line_with_its_result_its_time_and_the_time_that_is_left(watch, clock, tmp_path):
    start(watch, 1, "data/sums/train", tmp_path, content={"rows": 20000})
    clock[0] = 5
    # Half of the expected time, so what is left takes half too.
    assert watch.finished(1) == "[1/4] data sums/train  20,000 rows  5 s  about 26 s left"
    record = {"steps": 1125, "selected": {"by": "accuracy", "step": 1125, "value": 0.97}}
    manifest = {**MANIFEST, "lineage": [{"step": "cot", "record": record}]}
    start(watch, 2, "train/a@0+cot", tmp_path, "models/a@0+cot/copra.json", manifest)
    clock[0] = 185
    line = watch.finished(2)
    assert line.startswith("[2/4] train a@0+cot  97.0% right in validation, 1,125 steps  3.0 min  about 97 s")
    metrics = {"accuracy": 0.954, "flops": {"total": 5.5e6}}
    start(watch, 3, "evaluate/a@0+cot", tmp_path, "evaluations/a@0+cot/metrics.json", metrics)
    assert "95.4% right, 5.5 MFLOPs per answer" in watch.finished(3)


def test_a_run_to_a_target_has_no_forecast(watch, clock, tmp_path):
    """The forecast is that of the whole experiment."""
    watch.begun({"data": 1, "total": 1})
    start(watch, 1, "data/sums/train", tmp_path)
    clock[0] = 5
    assert watch.finished(1) == "[1/1] data sums/train  5 s"


def test_pages_are_counted_and_not_told(watch, tmp_path):
    start(watch, 1, "page", tmp_path)
    assert watch.finished(1) == ""
    assert watch.now().startswith("[1/4] jobs done")


def test_what_is_no_work_is_no_job(watch):
    watch.started(0, [], [], None)
    assert watch.finished(0) == ""
    assert watch.now() == "[0/4] jobs done"


def test_the_time_of_a_benchmark_counts_rather_than_that_since_the_start(watch, clock, tmp_path):
    """On a cluster a job waits first."""
    file = tmp_path / "benchmark.tsv"
    file.write_text("s\th:m:s\n7.5\t0:00:07\n")
    watch.started(1, ["results/x/logs/select/a@0.log"], [], str(file))
    clock[0] = 500
    assert "  8 s" in watch.finished(1)


def test_a_failed_job_is_told_with_its_reason_and_its_log(watch, tmp_path):
    log = tmp_path / "logs" / "train" / "a@0+cot.log"
    log.parent.mkdir(parents=True)
    log.write_text("12 of 60\ncopra train: step 2: loss nan. Lower training.learning_rate.\n")
    start(watch, 1, "train/a@0+cot", tmp_path)
    assert watch.failed(1, "train", [str(log)]).splitlines() == [
        "FAILED train a@0+cot",
        "  copra train: step 2: loss nan. Lower training.learning_rate.",
        f"  Log: {log}",
    ]
    start(watch, 2, "train/a@0+cot", tmp_path)
    log.write_text("Traceback (most recent call last):\n  File\nKeyboardInterrupt\n")
    assert watch.failed(2, "train", [str(log)]) == "stopped train a@0+cot"
    assert watch.failed(3, "train", []) == "FAILED train"


def test_of_a_failed_group_those_jobs_are_told_whose_logs_give_a_reason(watch, tmp_path):
    jobs = []
    for number, rule in enumerate(("train", "evaluate", "sweep_latents")):
        start(watch, number, f"{rule}/a@0", tmp_path)
        log = tmp_path / f"{rule}.log"
        log.write_text("60 of 60\n")
        jobs.append({"jobid": number, "rule_name": rule, "log": [str(log)]})
    told = watch.failed_together(jobs)
    assert re.findall("FAILED (.*) a@0", told) == ["train", "evaluate", "sweep_latents"]
    assert watch.now() == "[0/4] jobs done"
    start(watch, 1, "evaluate/a@0", tmp_path)
    (tmp_path / "evaluate.log").write_text("copra evaluate: no space left.\n")
    assert watch.failed_together(jobs).splitlines() == [
        "FAILED evaluate a@0",
        "  copra evaluate: no space left.",
        f"  Log: {tmp_path / 'evaluate.log'}",
    ]


def test_what_runs_now_is_told_with_its_loss(watch, clock, tmp_path):
    state = tmp_path / "state" / "a"
    state.mkdir(parents=True)
    heartbeat.start_heartbeat(state, "a@0+cot", 1000)
    ticks = [{"step": 100 * tick, "time": time.time() - 50 + 10 * tick} for tick in range(1, 6)]
    (state / heartbeat.SPEED).write_text("".join(json.dumps(tick) + "\n" for tick in ticks))
    (state / heartbeat.LOG).write_text('{"step": 498, "loss": 0.25, "learning_rate": 0.00125}\n')
    start(watch, 1, "train/a@0+cot", tmp_path)
    start(watch, 2, "score/a@0/cot/passes", tmp_path)
    start(watch, 3, "figure/accuracy_vs_flops", tmp_path)
    clock[0] = 12
    first, second, last = watch.now().splitlines()
    assert re.match(r"a@0\+cot  500 of 1,000 steps  50%  0.2500  1.25e-03", first)
    assert second == "score  a@0/cot/passes  12 s"
    assert last == "[0/4] jobs done"


def test_results_without_a_number_are_not_told(tmp_path):
    (tmp_path / "copra.json").write_text(json.dumps({"parameters": 1234567, "lineage": []}))
    assert result_of("base", [tmp_path / "copra.json"]) == "1.23 M parameters"
    assert result_of("select", [tmp_path / "missing.json"]) == ""
    assert result_of("figure", [tmp_path / "figure.svg"]) == ""


def test_an_error_in_a_line_ends_neither_the_run_nor_the_lines_after_it(tmp_path, capsys):
    """Records as Snakemake's, of a job whose metrics are damaged."""
    settings = SimpleNamespace(dryrun=False, stdout=True, quiet=set(), verbose=False)
    handler = LogHandler(settings, None)
    (tmp_path / "metrics.json").write_text("{")

    def tell(event, **fields):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, None, None, None)
        record.__dict__.update({"event": event, **fields})
        handler.handle(record)

    for number, output in ((1, "metrics.json"), (2, "figure.svg")):
        log = [f"{tmp_path}/logs/evaluate/a@{number}.log"]
        tell(LogEvent.JOB_INFO, jobid=number, log=log, output=[f"{tmp_path}/{output}"], benchmark=None)
        tell(LogEvent.JOB_FINISHED, job_id=number)
    handler.close()
    printed = capsys.readouterr()
    assert "metrics.json" in printed.err
    assert "evaluate a@2  0 s" in printed.out
