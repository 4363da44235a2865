"""Hash of the code that a command depends on: a change of it reruns the command's rules, and no others.

Snakemake compares the shell line of a rule, not the modules behind it. The hash covers the syntax trees of
all copra modules that the command's module imports, statically and transitively; comments, docstrings and
layout do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "copra"
ROOT = Path(__file__).parents[1]


@cache
def fingerprint(command: str) -> str:
    """Return 16 hexadecimal digits of a hash over all code that `copra <command>` can run."""
    total = hashlib.sha256()
    for module in sorted(closure(f"{PACKAGE}.commands.{command.replace('-', '_')}")):
        total.update(f"{module} {_code_hash(module)}\n".encode())
    return total.hexdigest()[:16]


def closure(module: str) -> frozenset[str]:
    """Return the copra modules that `module` imports, directly or indirectly, with itself and packages."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name)
    return frozenset(found)


@cache
def _tree(module: str) -> ast.Module:
    """Return the syntax tree of a module, without docstrings."""
    tree = ast.parse(_file(module).read_text())
    for node in (tree, *_statements(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_text(child)]
    return tree


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Return the copra modules in import statements anywhere in a module, and its parent packages."""
    names = {module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)}
    for node in _statements(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from .hooks import ...` is the form in files that travel with checkpoints; no package has it.
            beside = f"{module.rpartition('.')[0]}." if node.level else ""
            names |= {beside + node.module, *(f"{beside}{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(n for n in names if n.split(".")[0] == PACKAGE and _file(n).is_file()))


@cache
def _code_hash(module: str) -> str:
    return hashlib.sha256(ast.dump(_tree(module)).encode()).hexdigest()


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements within a node at any depth. Expressions, most of a tree, contain none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)


def _is_text(node: ast.stmt) -> bool:
    """True if a statement is a bare string: a docstring, also of a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
