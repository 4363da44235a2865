"""The example of docs/plugins.md, installed as a package: what commands that read configs make of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from copra.experiment.config import AnyStep
from copra.methods.registry import OTHER_STEPS
from helpers.lab import BLOCKS, SETTINGS, install
from helpers.tiny import YAML, set_paths

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with the installed package and the page's config."""
    folder = install(tmp_path_factory.mktemp("lab"))
    (folder / "config.yaml").write_text(BLOCKS["yml"])
    return folder


def python(folder: Path, *arguments: str, status: int = 0, **settings: str) -> str:
    """Run Python in a folder from which it also imports; return what it printed."""
    path = os.pathsep.join([str(ROOT / "src"), str(folder)])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, **SETTINGS, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def copra(folder: Path, *arguments: str, **options) -> str:
    return python(folder, "-m", "copra.cli", *arguments, **options)


def test_check_knows_the_plugins_and_names_those_in_use(lab):
    printed = copra(lab, "check", "config.yaml")
    assert "config.yaml: 4 recipes" in printed
    assert BLOCKS["text"] in printed
    assert "torch" not in printed


def test_a_config_that_uses_none_names_none(lab):
    (lab / "plain.yaml").write_text(YAML)
    assert "plugin" not in copra(lab, "check", "plain.yaml")


def test_without_plugins_their_names_are_unknown(lab):
    printed = copra(lab, "check", "config.yaml", status=1, COPRA_PLUGINS="off")
    assert "tasks.parity.kind: 'parity' is unknown" in printed
    assert "steps.late.kind: 'late_cot' is unknown" in printed
    assert "steps.narrow.metric: should be 'cosine', 'angular'" in printed


def test_the_schema_has_their_keys(lab):
    schema = json.loads(copra(lab, "schema"))
    assert schema["$defs"]["Parity"]["properties"]["bits"]["description"] == "Number of bits of a question."
    assert "skip" in schema["$defs"]["LateCot"]["properties"]
    assert schema["$defs"]["Prune"]["properties"]["metric"]["enum"][-1] == "fisher"


PLANNED = """
import sys
import lab
from pathlib import Path
from copra.commands.experiment import workflow_of
from copra.plan.estimate import Estimate
from copra.plan.jobs import Job
from copra.plan.work import work_of
from copra.tasks.registry import ALL_TASKS

workflow = workflow_of([Path("config.yaml")])
estimate = Estimate(workflow, Path("results"), cached=set())
job = {"outputs": (), "log": None, "benchmark": None, "needs": (), "cached": False}
jobs = [Job("score", f"llama@0+cot/cot/{name}", **job) for name in ("passes", "passes.fisher")]
own, plugins = (work_of(estimate, job, 0) for job in jobs)
print(own == plugins, own.flops > 0, ALL_TASKS["parity"] is lab.Parity, "torch" in sys.modules)
"""


def test_a_plan_counts_their_work_also_where_the_module_was_imported_before_copra(lab):
    assert python(lab, "-c", PLANNED) == "True True True False\n"


PROBED = """

class ProbedStage(Stage):
    def extra_modules(self):
        return {"probe": {}}


class Probed(Method):
    stage_type = ProbedStage
    kind: Literal["probed"]

    def stages(self):
        return {0: ProbedStage(layouts=(Layout(skip=0),))}
"""
CODED = """
import json
from pathlib import Path
from copra.commands.experiment import workflow_of
from copra.experiment.plugins_used import plugins_of_training
from copra.utils.fingerprint import fingerprint

workflow = workflow_of([Path("config.yaml")])
for name in ("cot", "cot+late", "cot+probed"):
    node = workflow.node(f"llama@0+{name}")
    code = json.loads(workflow.train_settings(node.name))["code"]
    plugins = plugins_of_training(node)
    is_whole, is_own = code == fingerprint("train", *plugins), code == fingerprint("train")
    print([each.name for each in plugins], is_whole, is_own)
for scoring in ("passes", "passes.fisher"):
    code = json.loads(workflow.score_settings("llama@0+cot", "cot", scoring))["code"]
    print(scoring, code == fingerprint("score"))
for task in ("parity", "sums"):
    print(task, json.loads(workflow.data_settings(task, "test"))["code"] == fingerprint("data"))
"""


def test_the_code_of_a_plugin_counts_only_for_the_results_that_it_takes_part_in(tmp_path):
    groups = {
        "copra.tasks": {"parity": "lab:Parity"},
        "copra.methods": {"late_cot": "lab:LateCot", "probed": "lab:Probed"},
        "copra.metrics": {"fisher": "lab:Fisher"},
        "copra.extra_modules": {"probe": "lab_modules:Probe"},
    }
    install(tmp_path, groups, BLOCKS["python"] + PROBED)
    (tmp_path / "lab_modules.py").write_text("raise RuntimeError('planning does not import it')")
    config = set_paths(
        yaml.safe_load(BLOCKS["yml"]),
        tasks__sums={"kind": "word_sums", "train": 9, "valid": 9, "test": 9},
        tasks__parity={"kind": "parity", "train": 9, "valid": 9, "test": 9},
        steps__probed={"kind": "probed", "training": {"steps": 1}},
        recipes=[["cot", "late"], ["cot", "probed"]],
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert python(tmp_path, "-c", CODED).splitlines() == [
        "[] True True",
        "['late_cot'] True False",
        "['probed', 'probe'] True False",
        "passes True",
        "passes.fisher False",
        "parity False",
        "sums True",
    ]


def test_check_warns_of_a_plugin_that_imports_torch(tmp_path):
    """A package of that name stands in for torch, which takes seconds."""
    install(tmp_path, code=f"import torch\n{BLOCKS['python']}")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    # Read by copra's hint on GPUs.
    (tmp_path / "torch" / "version.py").write_text('__version__, cuda = "2.13.0", None\n')
    (tmp_path / "config.yaml").write_text(BLOCKS["yml"])
    assert "warning: a plugin of copra-lab imports torch when it is loaded" in copra(tmp_path, "check")


def test_a_broken_plugin_is_an_error_of_every_command_that_reads_a_config(tmp_path):
    install(tmp_path, {"copra.methods": {"late_cot": "lab:LateCot"}}, code="import no_such_module")
    (tmp_path / "config.yaml").write_text(YAML)
    for command in (["check"], ["schema"]):
        (line,) = copra(tmp_path, *command, status=1).splitlines()
        assert line.startswith(
            f'copra {command[0]}: entry point late_cot = "lab:LateCot" in copra.methods of '
        )


def test_names_of_all_steps_are_taken():
    union, _ = get_args(AnyStep)
    others = get_args(union)[1:]
    assert {get_args(step.model_fields["kind"].annotation)[0] for step in others} == set(OTHER_STEPS)
