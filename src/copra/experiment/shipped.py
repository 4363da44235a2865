"""The files that come with copra beside its code: the Snakefile with its rules, and the presets.

In a checkout they are at its top level, in an installed copra in the package.
"""

from pathlib import Path

import copra
from copra.utils.errors import CopraError
from copra.utils.problems import hint

PACKAGE = Path(copra.__file__).parent
INSTALLED = PACKAGE / "shipped"


def snakefile() -> Path:
    """Return the path of the Snakefile.

    Raises:
        CopraError: it is not there.
    """
    return _file("Snakefile")


def presets() -> dict[str, Path]:
    """Return the config files that come with copra, by name, as in `gsm8k/gpt2`."""
    folder = _file("config")
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def config_file(name: str) -> Path:
    """Return a config file: the one at this path, or the preset of this name.

    Raises:
        CopraError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    found = presets()
    if name in found:
        return found[name]
    raise CopraError(f"{name}: no config file, and no preset{hint(name, found)}")


def _file(name: str) -> Path:
    for folder in (PACKAGE.parents[1], INSTALLED):
        if (folder / name).exists():
            return folder / name
    raise CopraError(f"{INSTALLED / name}: is missing. Install copra again.")
