"""`copra run`: a run with one line per finished job, its failures and its end."""

import os
import re
import subprocess
import sys

import pytest

from copra.utils.files import read_json
from helpers.copra_run import copra_run

COT = "llama@0+cot"


@pytest.fixture(scope="module")
def place(unstarted, tmp_path_factory):
    """A small experiment whose last training breaks down, in a folder of its own."""
    run = unstarted.empty(tmp_path_factory.mktemp("place") / "run")
    run.configure(
        recipes=[["cot", "no_cot"]], reference=None, importance={}, steps__no_cot__training__learning_rate=1e9
    )
    return run


@pytest.fixture(scope="module")
def printed(place):
    """What the run printed as it failed, and what it did when it went on to its end."""
    failed = copra_run(place, status=1)
    config = place.folder / "config.yaml"
    config.write_text(config.read_text().replace("1000000000.0", "0.001"))
    return failed, copra_run(place, "config.yaml")


def test_each_job_is_a_line(printed):
    (_, told), _ = printed
    assert re.search(r"^\d+ jobs: 3 data, .*1 base", told, re.MULTILINE)
    assert re.search(r"^\[ \d/\d+\] data sums/train  300 rows  \d+ s", told, re.MULTILINE)
    (line,) = [line for line in told.splitlines() if f"] train {COT} " in line]
    assert re.search(r"  loss [\d.]+ in validation, 40 steps  \d+ s", line)


def test_a_failed_job_is_told_by_its_message_alone(printed):
    (_, told), _ = printed
    lines = told.splitlines()
    place = lines.index(f"FAILED train {COT}+no_cot")
    assert lines[place + 1].startswith("  copra train: step 2: loss")
    assert lines[place + 2] == f"  Log: results/config/logs/train/{COT}+no_cot.log"
    assert "CalledProcessError" not in told
    assert "--settings" not in told
    assert lines[-1].startswith("Not finished. What is done is kept. To go on: copra run --cores 2")


def test_it_goes_on_and_ends_with_columns_picture_and_report(printed, place):
    _, (summary, told) = printed
    assert "base llama@0" not in told
    assert f"train {COT}+no_cot" in told
    assert re.match(r"left +method +accuracy \(%\) +FLOPs", summary)
    for name, file in (("Picture", "figures/accuracy_vs_flops.png"), ("Report", "report.html")):
        assert f"{name}: results/config/{file}" in summary
        assert (place.results / file).is_file()
    _, again = copra_run(place)
    assert "Nothing to be done" in again


def test_a_dry_run_tells_jobs_as_snakemake_does(place, printed, tmp_path):
    (place.folder / "other.yaml").write_text((place.folder / "config.yaml").read_text())
    told = "".join(copra_run(place, "other.yaml", "--dry-run"))
    assert f"Training {COT}" in told
    assert not list((place.folder / "results" / "other").rglob("*.log"))


def test_presets_have_names_and_unknown_ones_a_hint(place, printed):
    _, told = copra_run(place, "adition", status=1)
    assert "adition: no config file, and no preset" in told
    assert "addition" in told


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_terminal_shows_what_runs(place, printed):
    (place.results / "tables" / "accuracy_vs_flops.parquet").unlink()
    (place.results / "evaluations" / COT / "metrics.json").unlink(missing_ok=True)
    main, side = os.openpty()
    command = [sys.executable, "-m", "copra.cli", "run", "--cores", "1"]
    process = subprocess.Popen(
        command, cwd=place.folder, env=place.command()["env"], stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    text = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(main)
    assert process.wait(300) == 0, text.decode()
    assert b"jobs done" in text
    assert b"Report: results/config/report.html" in text


def test_a_quick_run_needs_no_network_and_ends_with_its_report(unstarted, tmp_path):
    """Of an experiment on a published model and rows on the Hub."""
    run = unstarted.empty(tmp_path / "run")
    run.configure(
        tasks={"gsm8k": {"kind": "gsm8k"}},
        task="gsm8k",
        base="llama",
        bases={"llama": {"path": "meta-llama/Llama-3.2-1B"}},
        recipes=[["cot", "drop-1"]],
        reference=None,
        seeds=[0, 1],
    )
    assert "Training llama+cot@0" in "".join(copra_run(run, "--quick", "--dry-run"))
    _, told = copra_run(run, "--quick")
    assert "base llama" in told
    assert (run.folder / "results" / "config-quick" / "report.html").is_file()
    assert (
        read_json(run.folder / "results" / "config-quick" / "models" / "llama" / "copra.json")["seed"] is None
    )
