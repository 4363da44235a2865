"""Commands that a person types with a config and the name of a job do what the rules do."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from copra.cli import COMMANDS
from copra.experiment.command_lines import RULES
from copra.experiment.workflow import Workflow
from copra.utils.files import read_yaml

PLANNED = Path(__file__).with_name("planned.py")
NODE = "llama@0+cot+no_cot"


@pytest.fixture
def everything(unstarted, tmp_path):
    """A run in an empty folder, of a config with jobs of all rules."""
    run = unstarted.empty(tmp_path / "run")
    (run.folder / "text.txt").write_text("one passage\n\nanother passage\n")
    run.configure(
        steps__coconut__first_stage=2,
        steps__int8={"kind": "quantize", "weights": "int8"},
        steps__shown={"kind": "few_shot", "num_fewshot": 1},
        steps__taught={
            "kind": "codi",
            "latents": 2,
            "latent_input": "raw",
            "training": {"steps": 2, "batch_size": 4, "num_validations": 1},
        },
        recipes=[["coconut", "drop-1", "groups-1", "int8"], ["cot", "shown"], ["cot", "taught"]],
        reference="llama+cot+shown",
        tasks__longer={"kind": "word_sums", "train": 1, "valid": 1, "test": 9, "min_steps": 5},
        evaluation={
            **{"max_new_tokens": 2, "latents": [0], "latents_from": ["other"], "lens": 2},
            **{"stages": True, "starts": True, "tasks": ["longer"]},
        },
        importance={"rows": 32, "objective": "text", "text": {"file": "text.txt"}},
        latency={"questions": 1, "batch_size": 2, "repetitions": 1, "forced_tokens": 2},
        conversions={"recipes": ["llama+cot+taught"], "formats": ["executorch-f32"], "questions": 2},
        curves={"layers": {"model": "llama+cot", "unit": "layers", "metrics": ["cosine"], "remove": [1]}},
        compute={"threads": 2, "processes": 2, "jobs_per_gpu": 2, "save_every_steps": 7},
        tracking="tensorboard",
    )
    return run


def test_the_options_and_inputs_are_those_of_the_rules(everything, monkeypatch):
    planned = everything.command("-n", "--quiet")
    planned["args"][1:3] = [str(PLANNED)]
    planned["args"][planned["args"].index("--cores") + 1] = "8"  # else Snakemake lowers threads
    printed = subprocess.run(**planned, check=True, stdout=subprocess.PIPE, text=True).stdout
    rules = {}
    for job in json.loads(printed.splitlines()[-1]):
        command = job["rule"].replace("_", "-")
        if command in RULES:
            words = shlex.split(re.sub(r" > \S+ 2>&1$", "", job["shell"]))
            assert words[:2] == ["copra", command]
            rules[tuple(words[1:])] = sorted(job["timed"])
    monkeypatch.chdir(everything.folder)
    flow = Workflow(read_yaml(Path("config.yaml")), "config.yaml")
    typed = {}
    for command, rule in RULES.items():
        for name in rule.names(flow):
            line = rule.line(flow, name)
            typed[command, *line.options] = sorted(line.reads)
    by_name = {name for name, command in COMMANDS.items() if command.job is not None}
    assert {words[0] for words in rules} == set(RULES) == by_name
    assert {words: reads for words, reads in typed.items() if words in rules} == rules


def test_a_job_by_hand_makes_what_the_rule_makes_and_snakemake_has_nothing_to_do(run):
    made = ("models", "evaluations")
    expected = {path: path.read_bytes() for kind in made for path in files(run.results / kind / NODE)}
    assert len(expected) > 5
    for kind in made:
        shutil.rmtree(run.results / kind / NODE)
    assert {f"Training {NODE}", f"Evaluating {NODE}"} <= run.would_run()
    for command in ("train", "evaluate"):
        typed(run, command, "llama+cot+no_cot")
    assert {path: path.read_bytes() for kind in made for path in files(run.results / kind / NODE)} == expected
    assert run.would_run() == set()


def test_an_experiment_by_hand_needs_no_snakemake(finished, tmp_path):
    """In a folder that Snakemake has not worked in, from the data to a figure."""
    run = finished.empty(tmp_path / "run")
    run.configure(recipes=[["cot"]], evaluation={"max_new_tokens": 8})
    for split in ("train", "valid", "test"):
        typed(run, "data", f"sums/{split}")
    typed(run, "base", "llama")
    typed(run, "train", "llama+cot")
    typed(run, "evaluate", "llama+cot")
    for command in ("table", "export", "figure"):
        typed(run, command, "accuracy_vs_flops")
    typed(run, "figure", "training_curves")
    typed(run, "page")
    for path in [*files(run.results / "data"), *files(run.results / "models")]:
        assert path.read_bytes() == (finished.results / path.relative_to(run.results)).read_bytes(), path
    assert run.would_run_with_report() == set()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def typed(run, command: str, *name: str) -> None:
    """Run `copra COMMAND config.yaml NAME` in the folder of a run, in the environment of its jobs."""
    line = ["bash", "-c", 'copra "$@"', "bash", command, "config.yaml", *name]
    done = subprocess.run(line, cwd=run.folder, env=run.command()["env"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
