"""Runs of Snakemake on a small experiment in a folder of its own, started in the background."""

import csv
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

TABLE = "results/config/tables/accuracy_vs_flops.csv"
TIMES = {f"{prompt}seconds_{batch}" for prompt in ("", "cached_prompt_") for batch in ("batch_1", "batched")}
# Jobs of seconds are asked after sooner than real ones.
SOON = "--slurm-init-seconds-before-status-checks=1"


class Run:
    """A run towards the accuracy table, started as soon as it is made."""

    def __init__(
        self, folder: Path, code: Path, environment: dict[str, str], config: dict[str, Any], *options: str
    ):
        self.folder = folder
        self.printed = folder / "printed"
        self.notes_folder = folder / "notes"
        self.notes_folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        own = {
            "PYTHONPATH": os.pathsep.join([str(code / "src"), environment["PYTHONPATH"]]),
            "COPRA_TEST_NOTES": str(self.notes_folder),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # Without its tests it ends too.
        line = ["setpriv", "--pdeathsig=KILL", sys.executable, "-m", "snakemake"]
        line += ["--snakefile", code / "Snakefile", "--directory", folder]
        with self.printed.open("w") as printed:
            self.process = subprocess.Popen(
                [*map(str, line), *options, "--", TABLE],
                cwd=folder,
                env=environment | own,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, seconds: float) -> None:
        """Wait for its end, which must be a good one."""
        assert self.process.wait(seconds) == 0, self.printed.read_text()

    def kill(self) -> None:
        """Leave nothing of it that runs on this machine, nor of what SLURM started for it: a node that is
        taken away may leave a process behind, where no cgroups hold a job together."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("COPRA_TEST_NOTES") == str(self.notes_folder):
                    process.kill()

    def files(self, kind: str) -> dict[str, bytes]:
        """The bytes of all files of a kind of results, by path."""
        folder = self.folder / "results" / "config" / kind
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def table(self) -> list[dict[str, str]]:
        """The rows of the table, less what is never the same twice."""
        with (self.folder / TABLE).open() as file:
            return [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]
