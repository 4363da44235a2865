"""Where the set-up is not as it should be, a message says what to do."""

import subprocess
import sys

from helpers.copied_code import ROOT

WITHOUT_COPRA = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "copra" else find_spec(name, *more)
from snakemake.cli import main
main()
"""


def failure(command, folder) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_snakemake_without_copra_says_where_the_other_is():
    told = failure([sys.executable, "-c", WITHOUT_COPRA, "--dry-run"], ROOT)
    assert f"copra is not installed for {sys.executable}" in told
    assert ".venv/bin/copra run" in told
    assert "Traceback" not in told


def test_make_names_the_python_that_it_needs(tmp_path):
    for name in ["Makefile", "pyproject.toml", *(file.name for file in ROOT.glob("requirements*.lock"))]:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    # One that is not there, and one that is too old.
    for python in ("python9.9", "false"):
        told = failure(["make", "demo", f"PYTHON={python}"], tmp_path)
        assert "copra needs Python 3.11 or newer. Name yours: make demo PYTHON=python3.12" in told
    assert not (tmp_path / ".venv").exists()
