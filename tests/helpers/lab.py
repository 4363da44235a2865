"""The package of docs/plugins.md, installed as pip installs one, and others like it."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
"""The page's blocks by language, of which it has one each."""
SETTINGS = {"COPRA_PLUGINS": "on"}
"""The variable of processes that may have plugins, which other tests have not."""


def install(
    folder: Path,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    code: str = BLOCKS["python"],
    module: str = "lab",
    package: str = "copra-lab",
) -> Path:
    """Write a module, the page's by default, and the record of its package to a folder for sys.path."""
    if groups is None:
        groups = tomllib.loads(BLOCKS["toml"])["project"]["entry-points"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    record = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (record / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
