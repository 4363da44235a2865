"""The code's fingerprint: it changes with the code that a verb can run, and with nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import copra
from copra.cli import COMMANDS
from copra.utils import fingerprint as module
from copra.utils.fingerprint import closure, fingerprint
from copra.utils.plugins import Plugin

PACKAGE = Path(copra.__file__).parent
# Commands that read a whole config, and that no rule calls.
PEOPLES = {
    "ask",
    "best",
    "check",
    "clean",
    "compare",
    "executorch",
    "gguf",
    "init",
    "jobs",
    "plan",
    "publish",
    "run",
    "status",
}


@pytest.fixture
def package(tmp_path):
    """A copy of the package that may be edited."""
    shutil.copytree(PACKAGE, tmp_path / "copra", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copra"


def fingerprints(package):
    """The fingerprints of all verbs, from a process that imports this copy of the package."""
    code = (
        "import json; from copra.cli import COMMANDS; from copra.utils.fingerprint import fingerprint;"
        "print(json.dumps({verb: fingerprint(verb) for verb in COMMANDS}))"
    )
    environment = {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def here() -> dict[str, str]:
    """The fingerprints of the code that is tested, in this process."""
    return {verb: fingerprint(verb) for verb in COMMANDS}


def imported(verb: str) -> frozenset[str]:
    """The modules that a command can run."""
    return closure(f"copra.commands.{verb.replace('-', '_')}")


def edit(package, file, old, new):
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new, 1))


def changed_verbs(package):
    """The verbs whose fingerprint has changed with edits."""
    before, after = here(), fingerprints(package)
    return {verb for verb in COMMANDS if before[verb] != after[verb]}


def test_it_is_short():
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in here().values())


@pytest.mark.slow
def test_comments_docstrings_and_layout_do_not_count(package):
    file = package / "training" / "loop.py"
    text, changed = re.subn(r'"""(?=\w)', '"""Other words: ', file.read_text())
    assert changed > 5
    text = text.replace("import json\n", "# A comment.\n\n\nimport json  # another\n", 1)
    file.write_text(text + "\n\n# the end\n")
    assert fingerprints(package) == here()


@pytest.mark.slow
def test_a_changed_statement_counts(package):
    edit(package, "training/step.py", "3 * math.log(", "4 * math.log(")
    assert changed_verbs(package) == {"train"}


@pytest.mark.slow
def test_a_changed_default_and_a_changed_message_count(package):
    edit(package, "schema/training.py", "= Field(1e-4, gt=0)", "= Field(1e-3, gt=0)")
    edit(package, "schema/pruning.py", "Give a smaller target.", "Lower it.")
    assert {"train", "select"} <= changed_verbs(package)


@pytest.mark.parametrize(
    ("module", "verbs"),
    [
        ("report.figures", {"figure"}),
        ("training.loop", {"train"}),
        ("pruning.surgery", {"prune", "score", "curve"}),
        ("pruning.scoring.heads", {"score"}),
        ("evaluation.latency", {"latency"}),
        ("experiment.workflow", PEOPLES),
    ],
)
def test_verbs_depend_on_what_they_import(module, verbs):
    assert {verb for verb in COMMANDS if f"copra.{module}" in imported(verb)} == verbs


def test_the_config_is_no_part_of_any_rule():
    """A new key must not make everything run again."""
    for verb in set(COMMANDS) - PEOPLES - {"schema"}:
        assert not {
            "copra.experiment.config",
            "copra.experiment.recipes",
            "copra.experiment.workflow",
        } & imported(verb)


def test_training_does_not_depend_on_reports():
    assert not {name for name in closure("copra.commands.train") if name.startswith("copra.report")}


def test_no_module_is_imported_in_a_way_that_the_closure_does_not_see():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        # Neighbours in files that travel with checkpoints are seen; packages and parents would not be.
        assert not re.search(r"^\s*from (\.\.|\. )", text, re.MULTILINE), file
        assert "from ." not in text or file.name != "__init__.py", file
        assert "__import__" not in text, file
        dynamic = (PACKAGE / "__init__.py", PACKAGE / "commands/registry.py", PACKAGE / "utils/forkserver.py")
        assert "import_module" not in text or file in dynamic, file


def test_neighbours_that_are_imported_as_such_are_seen():
    travelling = {f"copra.models.{name}" for name in ("thinking", "networks", "visits", "hooks", "rollout")}
    assert travelling <= imported("train")
    assert "copra.evaluation.asking" not in imported("train")


def test_how_a_job_starts_is_no_part_of_any_rule():
    starting = {"copra.cli", "copra.commands.typed", "copra.utils.forking", "copra.utils.forkserver"}
    assert not {verb for verb in COMMANDS if starting & imported(verb)}


LAB = {
    "__init__.py": "",
    "tasks.py": "import json\nfrom . import draws\nfrom .numbers import zero\n",
    "draws.py": "import lab.deep.names\n",
    "numbers/__init__.py": "from .more import one\n",
    "numbers/more.py": "from copra.tasks import prosqa\none = 1\n",
    "deep/__init__.py": "",
    "deep/names.py": "from ..last import end\n",
    "last.py": "end = 0\n",
    "other.py": "never = 0\n",
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The folder of a plugin's package, which a test may edit."""
    for name, text in LAB.items():
        (tmp_path / "lab" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "lab" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    yield tmp_path / "lab"
    _forget()


def _forget():
    for cached in (fingerprint, module._tree, module._file, module._imports, module._code_hash):
        cached.cache_clear()


def plugged(version="0.1.0"):
    """The fingerprint of `copra data` with the plugin, as a new process computes it."""
    _forget()
    return fingerprint("data", Plugin("copra.tasks", "mine", "lab.tasks:Mine", "copra-lab", version))


def test_the_code_of_a_plugin_counts_with_all_that_it_imports_of_its_package(lab):
    assert closure("lab.tasks") - closure("copra.tasks.prosqa") == {
        *("lab", "lab.tasks", "lab.draws", "lab.numbers", "lab.numbers.more"),
        *("lab.deep", "lab.deep.names", "lab.last"),
    }
    before = plugged()
    assert before != fingerprint("data")
    (lab / "last.py").write_text("# The last one.\nend = 0\n")
    (lab / "other.py").write_text("never = 1\n")
    assert plugged(version="0.2.0") == before
    (lab / "last.py").write_text("end = 1\n")
    assert plugged() != before


def test_of_a_plugin_without_source_files_the_version_counts(lab):
    (lab / "tasks.py").rename(lab / "tasks.pyc")
    assert len({fingerprint("data"), plugged("0.1.0"), plugged("0.2.0")}) == 3
    assert plugged("0.1.0") == plugged("0.1.0")


def test_source_files_are_found_without_an_import():
    assert module._file("copra.tasks") == PACKAGE / "tasks" / "__init__.py"
    assert module._file("copra.tasks.task") == PACKAGE / "tasks" / "task.py"
    assert module._file("sys") is None
    assert module._file("no_such_module") is None
