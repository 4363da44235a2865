"""The base class of everything that a user can set."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

# A name becomes part of a path and of a shell line, so it is checked here and nowhere else.
# "+" joins the steps of a node's name and "@" marks its seed: neither may occur in a name.
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=60)
]


Precision = Literal["float32", "tf32", "bfloat16"]
"""What matrices are multiplied in. tf32: weights of float32, products of TF32 on GPUs that have them."""


def one_or_list(value: Any) -> str:
    """Which form a value has that is one thing or a list of them: only the faults of that form are told."""
    return "list" if isinstance(value, list | tuple) else "one"


class Settings(BaseModel):
    """Typed settings: unknown keys are refused, values never change after the check.

    A docstring under a field is its documentation, in the code and in the JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def canonical(self) -> dict[str, Any]:
        """The settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")


def describe(schema: dict[str, Any]) -> None:
    """Put the docstring under each field into the JSON schema of settings, as the field's description.

    pydantic can do so itself, but only whenever a class is made: more than half of the time that copra's own
    modules take to import beside torch.
    """
    for kind in _kinds(Settings):
        part = schema if kind.__name__ == schema["title"] else schema["$defs"].get(kind.__name__, {})
        for name, text in _docstrings(kind).items():
            if name in part.get("properties", {}):
                part["properties"][name]["description"] = text


def _kinds(kind: type[Settings]) -> Iterator[type[Settings]]:
    """All classes below one."""
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _docstrings(kind: type[Settings]) -> dict[str, str]:
    """The texts under a class's fields, those of the classes above it included."""
    found = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, Settings):
            try:
                source = inspect.getsource(each)
            except OSError:  # made while the program runs, so it has no fields of its own
                continue
            (tree,) = ast.parse(textwrap.dedent(source)).body
            for field, text in pairwise(tree.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(words))):
                        found[name] = inspect.cleandoc(words)
    return found
