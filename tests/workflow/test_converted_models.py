"""A run that converts a model: ExecuTorch's own runtime answers as copra does."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pandas

from helpers.copied_code import ROOT
from helpers.plugins import plugin_folders

NODE = "llama@0+cot+coconut"
RECIPE = "llama+cot+coconut"


def printed(run, *arguments):
    """Run a command in the folder of a run; return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "copra.cli", *arguments],
        cwd=run.folder,
        env=run.command()["env"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_a_converted_model_has_a_row_beside_its_checkpoint(unstarted, tmp_path, request):
    cache = request.config.cache.mkdir("executorch")
    folders = plugin_folders(["executorch"], ROOT / "requirements-executorch.lock", cache)
    environment = {
        **unstarted.environment,
        "PYTHONPATH": os.pathsep.join([str(unstarted.code / "src"), *folders]),
    }
    run = replace(unstarted, folder=tmp_path / "run", environment=environment)
    run.folder.mkdir()
    run.configure(
        bases__llama__from_scratch__layers=1,
        recipes=[["cot", "coconut"]],
        reference=None,
        conversions={"recipes": [RECIPE], "formats": ["executorch-f32"], "questions": 12},
    )
    table = run.results / "tables" / "conversions.csv"
    run = replace(run, options=(str(table.relative_to(run.folder)),))
    run.snakemake()
    copra, phone = pandas.read_csv(table).to_dict("records")
    assert [(each["recipe"], each["format"], each["n"]) for each in (copra, phone)] == [
        (RECIPE, "copra", 12),
        (RECIPE, "executorch-f32", 12),
    ]
    assert (phone["accuracy"], phone["same_answers"]) == (copra["accuracy"], 1)
    program = run.results / "conversions" / NODE / "files" / "executorch-f32" / "model.pte"
    assert program.stat().st_size == phone["bytes"]
    assert min(phone["seconds_per_answer"], copra["seconds_per_answer"]) > 0
    assert run.would_run() == set()
    planned = printed(run, "plan", "config.yaml")
    assert re.search(r"^convert +1 +1 +0 ", planned, re.MULTILINE), planned
    left = run.results / "conversions" / "llama@0+old" / "files"
    left.mkdir(parents=True)
    listed = printed(run, "clean", "config.yaml")
    assert "conversions/llama@0+old" in listed
    assert NODE not in listed
