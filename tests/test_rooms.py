"""Folders of the package import only those below them; `schema` and `experiment` never import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import copra

PACKAGE = Path(copra.__file__).parent
# From the top to the bottom.
ROOMS = (
    "cli",
    "commands",
    "plan",
    "experiment",
    "report",
    "pruning",
    "evaluation",
    "training",
    "cost",
    "generation",
    "methods",
    "models",
    "data",
    "tasks",
    "schema",
    "utils",
)


def imports(file: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("copra."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "copra":
            found |= {alias.name for alias in node.names} & set(ROOMS)
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("copra.")}
    return found


def test_each_room_imports_only_from_those_below_it():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            allowed = ROOMS[ROOMS.index(room) :]
            wrong += [f"{file.relative_to(PACKAGE)} imports {each}" for each in imports(file) - set(allowed)]
    assert wrong == []


def test_every_room_is_listed():
    assert {path.stem for path in PACKAGE.iterdir() if path.name[0] != "_"} == set(ROOMS)


def test_schema_and_experiment_never_import_torch():
    modules = [
        ".".join(("copra", *file.relative_to(PACKAGE).with_suffix("").parts))
        for room in ("schema", "experiment")
        for file in sorted((PACKAGE / room).glob("[!_]*.py"))
    ]
    command = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
