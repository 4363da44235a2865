"""Snakemake's plugins for clusters, as tests get them.

They are no part of the test environment, since with them each call of Snakemake is slower.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest


def plugin_folders(modules: Sequence[str], lock: Path, cache: Path) -> list[str]:
    """Folders from which plugins can be imported: none where they are installed beside Snakemake.

    `lock` pins them with all that they need and Snakemake does not. Skips the test where pip cannot fetch
    them; `cache` keeps them.
    """
    if all(find_spec(module) for module in modules):
        return []
    return [str(fetched(lock.read_text().split(), cache, ["install", "--no-deps", "--target"]))]


def fetched(wanted: Sequence[str], cache: Path, command: Sequence[str]) -> Path:
    """The folder in `cache` that pip has filled with exactly these requirements, now or earlier."""
    name = hashlib.sha256(" ".join([*command, *wanted]).encode()).hexdigest()[:16]
    folder = cache / name
    if not folder.exists():
        unfinished = cache / f"unfinished-{os.getpid()}"
        line = [sys.executable, "-m", "pip", *command, unfinished, "--quiet", *wanted]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            pytest.skip(f"pip could not fetch {', '.join(wanted)}: {done.stderr.strip()[-200:]}")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(unfinished)  # another process of the tests was quicker
    return folder
