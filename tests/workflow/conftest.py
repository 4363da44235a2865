"""A tiny experiment that Snakemake runs once; tests work in copies of the finished run.

Everything runs from a copy of the repository's code, so that a test may edit it, and edits of the
repository during a run of the tests do not disturb them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.copied_code import copy_code
from helpers.tiny import DROP, TRAINING, set_paths, tiny_config
from helpers.warm import warm_copra

SHORT = {**TRAINING, "steps": 6}
CONFIG = tiny_config(
    tasks__sums={"kind": "word_sums", "train": 300, "valid": 40, "test": 60},
    steps={
        "cot": {"kind": "cot", "training": {**SHORT, "steps": 40}},
        "no_cot": {"kind": "no_cot", "training": {**SHORT, "weight_decay": 0.25, "max_grad_norm": 0.5}},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": SHORT},
        "drop-1": DROP,
        "groups-1": {"kind": "prune", "unit": "kv_groups", "metric": "gradient", "budget": {"fraction": 0.5}},
        "lowest-1": {**DROP, "metric": "deepest"},
    },
    recipes=[["cot"], ["cot", "no_cot"], ["cot", "drop-1", "groups-1", "coconut"]],
    reference="llama+cot",
    importance={"rows": 32},
    evaluation={"stages": True, "max_new_tokens": 8},
)


@dataclass(frozen=True)
class Run:
    """A folder that Snakemake works in, and the copy of the code that it works with."""

    folder: Path
    code: Path
    # Variables for Snakemake and its jobs.
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def results(self) -> Path:
        return self.folder / "results" / "config"

    def configure(self, **changes) -> None:
        """Write config.yaml: the tiny experiment with values set by path, as in steps__cot__kind="cot"."""
        _write_config(self.folder / "config.yaml", changes)

    def with_config(self, file: Path, **changes) -> "Run":
        """This run with another config, which is written to `file`: for dry runs, which change nothing."""
        _write_config(file, changes)
        return replace(self, options=("--configfile", str(file)))

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> dict:
        """What subprocess needs to run Snakemake here."""
        line = [sys.executable, "-m", "snakemake", "--snakefile", self.code / "Snakefile"]
        line += ["--directory", self.folder, "--cores", "2", *self.options, *arguments]
        own = {"PYTHONPATH": str(self.code / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        own |= {**self.environment, **(environment or {})}
        return {"args": list(map(str, line)), "cwd": self.code, "env": os.environ | own}

    def snakemake(self, *arguments: str, succeeds: bool = True, **options) -> str:
        """Run Snakemake to its end; returns all that it printed."""
        done = subprocess.run(
            **self.command(*arguments, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert (done.returncode == 0) == succeeds, done.stdout
        return done.stdout

    def would_run(self) -> set[str]:
        """The messages of all jobs of a dry run: each names its rule and its wildcards.

        The report is left out, which follows every table and figure, and shows the config.
        """
        return self.would_run_with_report() - {REPORT}

    def would_run_with_report(self) -> set[str]:
        printed = self.snakemake("-n")
        found = re.findall(r"^Job \d+: (.*)$", printed, re.MULTILINE)
        # The number of jobs in Snakemake's own count, so that no job without a message is missed.
        total = re.search(r"^total +(\d+)$", printed, re.MULTILINE)
        assert len(found) == (int(total[1]) if total else 0)
        return set(found) - {END}

    def empty(self, folder: Path) -> "Run":
        """A run in a new folder."""
        folder.mkdir()
        return replace(self, folder=folder)

    def copied(self, folder: Path, code: Path | None = None) -> "Run":
        """A copy of this run with all times as they are, Snakemake's own records included."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder, code=code or self.code)


END = (
    "Tables are in results/config/tables, figures in results/config/figures, "
    "the report is results/config/report.html"
)
REPORT = "Writing the report"


def _write_config(file: Path, changes: Mapping[str, Any]) -> None:
    file.write_text(yaml.safe_dump(set_paths(CONFIG, **changes), sort_keys=False))


@pytest.fixture(scope="session")
def code(tmp_path_factory) -> Path:
    """A copy of the repository's code. Do not change it: take `edited`."""
    return copy_code(tmp_path_factory.mktemp("workflow") / "code")


@pytest.fixture(scope="session")
def warm(code) -> Iterator[dict[str, str]]:
    """The environment of runs whose jobs are quick to start."""
    with warm_copra(code / "src") as environment:
        yield environment


@pytest.fixture(scope="session")
def unstarted(tmp_path_factory, code, warm) -> Run:
    """A run in an empty folder, without a config."""
    return Run(tmp_path_factory.mktemp("unstarted"), code, warm)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, code, warm) -> Run:
    """The finished run. Dry runs leave it as it is; for all else take `run`."""
    run = Run(tmp_path_factory.mktemp("finished"), code, warm)
    run.configure()
    run.snakemake()
    return run


@pytest.fixture
def run(finished, tmp_path) -> Run:
    """A copy of the finished run."""
    return finished.copied(tmp_path / "run")


@pytest.fixture
def edited(finished, tmp_path) -> Run:
    """A copy of the finished run with a copy of the code."""
    run = finished.copied(tmp_path / "run", shutil.copytree(finished.code, tmp_path / "code"))
    return replace(run, environment={})
