"""Imports stand at the top of a file, but for the exceptions listed here."""

import ast
from pathlib import Path

import copra

PACKAGE = Path(copra.__file__).parent
# Folders and files with imports inside functions, and why.
EXCEPTIONS = {
    "cli.py": "help must not wait for the modules of commands",
    "evaluation/statistics.py": "tables without intervals do not wait for scipy",
    "generation/executorch.py": "executorch is an optional dependency",
    "generation/llama_cpp.py": "llama-cpp-python is an optional dependency",
    "methods": "the settings classes of methods are read where torch is not imported",
    "models/base_config.py": "a check of local bases does not wait for the Hub's library",
    "models/executorch_file.py": "executorch and torchao are optional dependencies",
    "models/gguf_file.py": "gguf is an optional dependency",
    "models/quantized.py": "torchao is an optional dependency",
    "plan/rows.py": "a plan for a model that is not fetched does not wait for transformers",
    "plan/surroundings.py": "only what is not here yet is asked for on the Hub",
    "plan/words.py": "a check without other tasks does not wait for transformers",
    "pruning/scoring/scores.py": "planning does not wait for pandas",
    "pruning/scoring/text.py": "only a data set of the Hub needs datasets, which takes seconds",
    "report/formats.py": "planning does not wait for pandas",
    "tasks/hub.py": "only a data set of the Hub needs datasets, which takes seconds",
    "tasks/prepare.py": "a check of a config does not wait for pandas",
    "training/adapters.py": "only LoRA needs peft, which takes seconds",
    "training/tracking.py": "only a tracked training needs accelerate's trackers",
    "utils/containers.py": "only a Parquet file needs pyarrow",
    "utils/files.py": "a check of a config does not wait for pyarrow",
    "utils/forking.py": "only Snakemake's own process needs snakemake",
    "utils/processes.py": "only several processes need torch here",
}


def imports_in_functions(file: Path) -> list[int]:
    """The lines of imports inside functions."""
    functions = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(
        {
            node.lineno
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
    )


def test_imports_stand_at_the_top():
    found = {
        str(file.relative_to(PACKAGE)): lines
        for file in PACKAGE.rglob("*.py")
        if (lines := imports_in_functions(file))
    }
    used = {entry for name in found for entry in EXCEPTIONS if name == entry or name.startswith(f"{entry}/")}
    assert [name for name in found if name not in used and name.split("/")[0] not in used] == []
    assert set(EXCEPTIONS) - {"cli.py"} - used == set()
