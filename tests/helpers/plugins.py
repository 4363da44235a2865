"""Packages that are no part of the test environment, as tests get them.

With Snakemake's plugins for clusters each call of Snakemake is slower, and the evaluation harness is large.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest


def plugin_folders(modules: Sequence[str], lock: Path, cache: Path) -> list[str]:
    """Folders from which modules can be imported: none where they are installed in the test environment.

    `lock` pins them with all that they need and copra does not. Skips the test where pip cannot fetch
    them; `cache` keeps them.
    """
    if all(find_spec(module) for module in modules):
        return []
    return [str(fetched(lock, cache, ["install", "--target"]))]


def fetched(lock: Path, cache: Path, command: Sequence[str], beginning: str = "") -> Path:
    """The folder in `cache` that pip has filled, now or earlier, with exactly the packages of a lock file
    whose names begin so."""
    entries = re.split(r"^(?=\S)", lock.read_text(), flags=re.MULTILINE)
    wanted = "".join(entry for entry in entries if entry.startswith(beginning))
    name = hashlib.sha256(" ".join([*command, wanted]).encode()).hexdigest()[:16]
    folder = cache / name
    if not folder.exists():
        unfinished = cache / f"unfinished-{os.getpid()}"
        requirements = cache / f"requirements-{os.getpid()}.lock"
        requirements.write_text(wanted)
        line = [sys.executable, "-m", "pip", *command, unfinished, "--quiet", "--no-deps"]
        line += ["--require-hashes", "--requirement", requirements]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        requirements.unlink()
        if done.returncode != 0:
            pytest.skip(f"pip could not fetch what {lock.name} names: {done.stderr.strip()[-200:]}")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(unfinished)  # another process of the tests was quicker
    return folder
