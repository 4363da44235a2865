"""Tab completion, as bash itself computes it from the script that `copra completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from copra.cli import COMMANDS, main
from helpers.tiny import YAML

pytestmark = pytest.mark.slow

CONFIG = f"{YAML}seeds: [0, 1]\n"
# Completes the words of its arguments, of which the last is unfinished.
ASK = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_copra
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config, the script, and a program named copra."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "mine.yaml").write_text(CONFIG)
    program = folder / "copra"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m copra.cli "$@"\n')
    program.chmod(0o755)
    script = subprocess.run([program, "completion", "bash"], check=True, capture_output=True)
    (folder / "script").write_bytes(script.stdout)
    return folder


def completions(place: Path, *words: str) -> set[str]:
    environment = os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-c", ASK, "bash", str(place / "script"), "copra", *words]
    done = subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_commands_options_configs_and_names_are_completed(place):
    assert completions(place, "") == set(COMMANDS)
    assert completions(place, "cl") == {"clean"}
    assert completions(place, "train", "--th") == {"--threads"}
    assert completions(place, "train", "mi") == {"mine.yaml"}
    assert completions(place, "check", "") == {"mine.yaml"}
    assert completions(place, "train", "mine.yaml", "") == {"llama@0+cot", "llama@1+cot"}
    assert completions(place, "train", "mine.yaml", "llama@1") == {"llama@1+cot"}
    assert completions(place, "data", "mine.yaml", "sums/t") == {"sums/train", "sums/test"}
    assert completions(place, "train", "none.yaml", "") == set()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_that_names_all_commands(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "copra jobs" in script


def test_jobs_are_listed_by_the_names_that_commands_take(capsys, place):
    assert main(["jobs", str(place / "mine.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"data sums/train", "base llama@0", "train llama@1+cot", "evaluate llama@1+cot", "latency"} <= set(
        lines
    )
    assert main(["jobs", str(place / "mine.yaml"), "--of", "base"]) == 0
    assert capsys.readouterr().out.splitlines() == ["llama@0", "llama@1"]
