"""The repository's code as runs of Snakemake get it: a copy that no edit disturbs, and tests may edit."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_code(folder: Path, at_start: str = "") -> Path:
    """Copy the code to a folder; Python processes that import from it run `at_start` first."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("workflow", "profiles", "config", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    if at_start:
        (folder / "src" / "sitecustomize.py").write_text(at_start)
    return folder
