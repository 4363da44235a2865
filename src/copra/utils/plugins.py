"""Plugins: tasks, methods, metrics and extra modules of other installed packages, which entry points name.

A package names them in its pyproject.toml, each by the name that configs use:

    [project.entry-points."copra.tasks"]
    countdown = "lab.countdown:Countdown"

Plugins are used because their package is installed. With COPRA_PLUGINS=off there are none.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel

from copra.utils.errors import CopraError
from copra.utils.problems import shown

VARIABLE, OFF = "COPRA_PLUGINS", "off"
NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
"""The names that a plugin may have: they become parts of paths and of patterns."""

Group = Literal["copra.tasks", "copra.methods", "copra.metrics", "copra.extra_modules"]
Class = TypeVar("Class")


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package, which is imported when its class is needed."""

    group: Group
    name: str
    """The name that configs use."""
    target: str
    """The module and the class in it, such as "lab.countdown:Countdown"."""
    package: str
    version: str

    @property
    def module(self) -> str:
        return self.target.partition(":")[0].strip()

    def problem(self, text: str) -> CopraError:
        """Return the error that the plugin is at fault, with what to do about it."""
        return CopraError(
            f'entry point {self.name} = "{self.target}" in {self.group} of the installed package '
            f"{self.package} {self.version}: {text}. Mend the package or uninstall it (pip uninstall "
            f"{self.package}); {VARIABLE}={OFF} runs copra without any plugin."
        )

    def load(self, base: type[Class]) -> type[Class]:
        """Import and return the plugin's class.

        Raises:
            CopraError: it cannot be imported, or is no class that can be used as `base`.
        """
        try:
            found = EntryPoint(self.name, self.target, self.group).load()
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise self.problem(f"it cannot be imported ({text})") from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise self.problem(f"{shown(found)} is no subclass of {base.__module__}.{base.__qualname__}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise self.problem(f"the class does not define {', '.join(missing)}")
        return found

    def load_kind(self, base: type[Class]) -> type[Class]:
        """Import and return a class of settings, which the key `kind` of a config selects by this name.

        Raises:
            CopraError: as `load` does, or the class has another kind.
        """
        found = self.load(base)
        assert issubclass(found, BaseModel), "tasks and methods are settings"
        if get_args(found.model_fields["kind"].annotation) != (self.name,):
            raise self.problem(
                f"the class has another kind than the name of its entry point; it needs the line `kind: "
                f'Literal["{self.name}"]`'
            )
        return found


def plugins_of(group: Group, taken: Iterable[str]) -> dict[str, Plugin]:
    """Return the installed plugins of a group by name, without importing them; `taken` are copra's own names.

    Raises:
        CopraError: a name is taken, given by two packages, or not a legal name.
    """
    found: dict[str, Plugin] = {}
    own = set(taken)
    entries = () if os.environ.get(VARIABLE) == OFF else _entry_points().select(group=group)
    for entry in entries:
        assert entry.dist is not None, "entry points of installed packages know them"
        plugin = Plugin(group, entry.name, entry.value, entry.dist.name, entry.dist.version)
        if not NAME.fullmatch(plugin.name):
            raise plugin.problem(
                "its name may have at most 60 lower-case letters, digits and '_', and begins with a letter"
            )
        if plugin.name in own:
            raise plugin.problem(f"copra has a {plugin.name} of its own, so the plugin needs another name")
        if plugin.name in found:
            other = found[plugin.name]
            raise plugin.problem(f"the package {other.package} {other.version} has the same name")
        found[plugin.name] = plugin
    return found


@cache
def _entry_points() -> Any:
    """Return all entry points, of a type of Python's that 3.12 has renamed.

    The files of all installed packages are read, once per process.
    """
    return entry_points()
