"""Hash of the code that a command depends on: a change of it reruns the command's rules, and no others.

Snakemake compares the shell line of a rule, not the modules behind it. The hash covers the syntax trees of
all copra modules that the command's module imports, statically and transitively, and those of the plugins
that a rule uses; comments, docstrings and layout do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

from copra.utils.plugins import Plugin

PACKAGE = "copra"


@cache
def fingerprint(command: str, *plugins: Plugin) -> str:
    """Return 16 hexadecimal digits of a hash over all code that `copra <command>` can run with `plugins`.

    Of plugins without source files it covers the version.
    """
    total = hashlib.sha256()
    modules = closure(f"{PACKAGE}.commands.{command.replace('-', '_')}", *(each.module for each in plugins))
    for module in sorted(modules):
        total.update(f"{module} {_code_hash(module)}\n".encode())
    for plugin in plugins:
        if plugin.module not in modules:
            total.update(f"{plugin.package} {plugin.version}\n".encode())
    return total.hexdigest()[:16]


def closure(*modules: str) -> frozenset[str]:
    """Return the modules that `modules` import, directly or indirectly, with themselves and packages.

    Only those of copra and of the packages of `modules` count, as far as they have source files.
    """
    packages = {PACKAGE, *(module.split(".")[0] for module in modules)}
    found: set[str] = set()
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name not in found and name.split(".")[0] in packages and _file(name):
            found.add(name)
            waiting += _imports(name)
    return frozenset(found)


@cache
def _tree(module: str) -> ast.Module:
    """Return the syntax tree of a module, without docstrings."""
    file = _file(module)
    assert file is not None, "closures have modules with source files"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in (tree, *_statements(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_text(child)]
    return tree


@cache
def _file(module: str) -> Path | None:
    """Return the source file of a module, which is not imported for that; None if it has none."""
    top, *parts = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module that runs as __main__
        spec = None
    if spec is None:
        return None
    if not parts:
        files = [Path(spec.origin)] if spec.origin else []
    else:
        places = [Path(folder, *parts) for folder in spec.submodule_search_locations or ()]
        files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Return what import statements anywhere in a module may name, and its parent packages."""
    names = {module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)}
    file = _file(module)
    is_package = file is not None and file.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in _statements(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            source = resolve_name("." * node.level + origin, package) if node.level else origin
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return tuple(sorted(names))


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
