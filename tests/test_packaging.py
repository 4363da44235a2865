"""What pip installs: a wheel with the whole package, and lock files that pin all that it needs by hash."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires, version
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import copra
from helpers.copied_code import ROOT, copy_code

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(ROOT.glob("requirements*.lock"))


def locked(path: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirement and the hashes of each package of a lock file."""
    entries = re.split(r"^(?=\S)", path.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        words, *hashes = [line.strip() for line in entry.replace("\\\n", "\n").splitlines()]
        requirement = Requirement(words)
        found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_file_pins_each_package_by_version_and_hash(path):
    packages = locked(path)
    assert packages
    for requirement, hashes in packages.values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)


def test_the_lock_file_has_all_that_copra_its_tests_its_site_and_quantization_need():
    # Torch's libraries for CUDA are in a lock file of their own.
    cuda = locked(ROOT / "requirements-cuda.lock")
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["test"], *extras["docs"], *extras["quantize"], *extras["gguf"]]
    needed = _closure(lines, skip=set(cuda))
    assert {"torch", "snakemake", "pytest", "zensical", "torchao", "numpy"} <= needed
    assert needed - set(locked(ROOT / "requirements.lock")) == set()


def _closure(lines: Iterable[str], skip: set[str]) -> set[str]:
    """The names of all packages that these requirements lead to, by the metadata of installed packages."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in skip or (name in found and not requirement.extras):
            continue
        found.add(name)
        for each in map(Requirement, requires(name) or []):
            environments = [{"extra": extra} for extra in (*requirement.extras, "")]
            if each.marker is None or any(map(each.marker.evaluate, environments)):
                waiting.append(each)
    return found


@pytest.mark.slow
def test_each_package_that_copra_imports_is_declared():
    extras = PROJECT["optional-dependencies"]
    optional = [extras[name] for name in ("quantize", "gguf", "llama-cpp", "executorch")]
    lines = [*PROJECT["dependencies"], *chain.from_iterable(optional)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    nodes = [node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported = {name.split(".")[0] for name in names} - {"copra", *sys.stdlib_module_names}
    assert {"torch", "yaml", "statsmodels"} <= imported
    # Two are not installed by make.
    homes = {"llama_cpp": ["llama-cpp-python"], "executorch": ["executorch"], **packages_distributions()}
    assert {name for name in imported if not declared & set(map(canonicalize_name, homes[name]))} == set()


def test_the_newest_release_of_the_changelog_is_this_version_and_the_one_to_cite():
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert unreleased == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert releases[0] == f"[{copra.__version__}] - {citation['date-released']}"
    assert citation["version"] == copra.__version__
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


@pytest.mark.parametrize("name", ["torch", "transformers", "snakemake"])
def test_upper_bounds_are_the_first_versions_that_the_tests_have_not_seen(name):
    (specifier,) = (each.specifier for each in map(Requirement, PROJECT["dependencies"]) if each.name == name)
    (pin,) = locked(ROOT / "requirements.lock")[name][0].specifier
    seen = Version(version(name))
    assert Version(pin.version).release == seen.release
    assert seen in specifier
    assert f"{seen.major}.{seen.minor}.999" in specifier
    assert f"{seen.major}.{seen.minor + 1}" not in specifier


@pytest.mark.slow
def test_a_wheel_holds_the_whole_package_and_its_command(tmp_path):
    # A build writes beside the sources.
    code = copy_code(tmp_path / "code")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, code)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", tmp_path, code], check=True)
    (wheel,) = tmp_path.glob("copra-*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", *offline, "--target", installed, wheel], check=True)

    # Worked examples of few-shot prompts, captions and the report's template too.
    for kind in ("py", "jsonl", "rst", "html"):
        files = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob(f"*.{kind}")}
        packages = (installed / "copra", installed / "snakemake_logger_plugin_copra")
        found = {path.relative_to(installed) for package in packages for path in package.rglob(f"*.{kind}")}
        assert {path for path in found if "shipped" not in path.parts} == files != set()
    named = {"env": os.environ | {"PYTHONPATH": str(installed)}, "cwd": tmp_path}
    for arguments, told in (
        (["check", ROOT / "config.yaml"], "recipes"),
        # A preset by its name, with the workflow in the package.
        (["run", "addition", "--dry-run"], "Writing the report"),
    ):
        command = [installed / "bin" / "copra", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, **named)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout + done.stderr
