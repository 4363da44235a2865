"""The jobs of an experiment with their files and dependencies, as Snakemake plans them.

`jobs_of` runs `copra.plan.dry_run` in a process of its own: the Snakefile changes Snakemake's classes, and
both load modules that other commands do without.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from copra.experiment.shipped import snakefile
from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError

MODELS = ("base", "train", "prune", "prompt", "quantize")
"""The rules that make a model of the recipe tree, by the node's kind."""


@dataclass(frozen=True)
class Job:
    """A job of the workflow.

    `name` is its name in the paths of its log and its benchmark, such as `llama@0+cot` or, for `latency`,
    nothing; `needs` are the keys of the jobs whose outputs it reads. `cached` is True if Snakemake would not
    run it.
    """

    rule: str
    name: str
    outputs: tuple[Path, ...]
    log: Path
    benchmark: Path
    needs: tuple[str, ...]
    cached: bool

    @property
    def key(self) -> str:
        return f"{self.rule}/{self.name}" if self.name else self.rule


def jobs_of(workflow: Workflow) -> dict[str, Job]:
    """Return all jobs of `rule all` by key, each after the jobs that it needs; the files are relative paths.

    Raises:
        CopraError: Snakemake cannot plan the run, for example because a file of the user is missing.
    """
    with TemporaryDirectory() as folder:
        # The name of the file names the folder of results.
        config = Path(folder) / Path(workflow.files[0]).name
        config.write_text(json.dumps(workflow.config))
        command = [sys.executable, "-m", "copra.plan.dry_run", str(snakefile()), str(config)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().removeprefix("Building DAG of jobs...\n")
        raise CopraError(f"Snakemake cannot plan the run.\n{lines}")
    jobs: dict[str, Job] = {}
    for rule, log, benchmark, outputs, needs, cached in json.loads(done.stdout.splitlines()[-1]):
        key = _key(workflow, log)
        jobs[key] = Job(
            rule,
            key.partition("/")[2],
            tuple(map(Path, outputs)),
            Path(log),
            Path(benchmark),
            tuple(_key(workflow, each) for each in needs),
            cached,
        )
    return jobs


def _key(workflow: Workflow, log: str) -> str:
    return workflow.within("logs", log).removesuffix(".log")
