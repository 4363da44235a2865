"""copra as a module of another workflow, as config/README.md shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "config" / "README.md").read_text()
(SNAKEFILE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
EXPERIMENT = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"name": "pruned"}
EXPERIMENT["tasks"]["graphs"] |= {"train": 300, "valid": 40, "test": 60}
COUNT = """
rule count:
    input: "results/pruned/data/graphs/test.json"
    output: "results/count.txt"
    shell: "grep -o '\\"rows\\": [0-9]*' {input} > {output}"
"""
MODULE = """
module {name}:
    snakefile: "{code}/Snakefile"
    config: {{**config["copra"], "name": "{name}"}}
use rule * from {name} as {name}_*
"""


@pytest.fixture
def outer(tmp_path, code) -> Path:
    """A folder with the page's Snakefile and, at the key `copra` of its config, the default experiment."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"copra": EXPERIMENT}))
    (tmp_path / "Snakefile").write_text(SNAKEFILE.replace("../copra", str(code)))
    return tmp_path


def snakemake(folder: Path, code: Path, *arguments: str) -> str:
    """Run Snakemake in a folder; returns all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(code / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def planned(printed: str) -> dict[str, int]:
    """The number of jobs of each rule in a dry run."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)}


def test_the_pages_workflow_plans_the_experiment_and_its_own_rule(outer, code):
    jobs = planned(snakemake(outer, code, "-n", "--quiet", "rules", "host"))
    assert jobs["poster"] == 1
    assert jobs["copra_train"] > jobs["copra_prune"] > 0
    assert "copra_all" not in jobs
    printed = snakemake(outer, code, "-n", "copra_all")
    assert "Tables are in results/pruned/tables, figures in results/pruned/figures" in printed


def test_jobs_write_into_the_folder_of_the_workflow_that_uses_the_module(outer, code):
    with (outer / "Snakefile").open("a") as file:
        file.write(COUNT)
    snakemake(outer, code, "count")
    assert (outer / "results" / "count.txt").read_text() == '"rows": 60\n'
    assert (outer / "results" / "pruned" / "logs" / "data" / "graphs" / "test.log").exists()
    assert "Nothing to be done" in snakemake(outer, code, "-n", "count")
    assert not (code / "results").exists()


def test_two_experiments_can_be_modules_of_one_workflow_whose_config_is_in_no_file(outer, code):
    modules = "".join(MODULE.format(name=name, code=code) for name in ("first", "second"))
    (outer / "Snakefile").write_text(f"config = {{'copra': {EXPERIMENT!r}}}\n{modules}")
    jobs = planned(snakemake(outer, code, "-n", "--quiet", "rules", "host", "--", "first_all", "second_all"))
    assert jobs["first_train"] == jobs["second_train"] > 0


def test_the_file_that_the_catalog_looks_for_is_the_same_workflow(tmp_path, code):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    options = ("-n", "--quiet", "rules", "host", "--directory", str(tmp_path), "--snakefile")
    ours, found = (
        planned(snakemake(code, code, *options, name)) for name in ("Snakefile", "workflow/Snakefile")
    )
    assert found.pop("everything") == ours.pop("all") == 1
    assert found == ours
