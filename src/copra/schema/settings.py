"""The base class of all settings, and the types and bounds that they share."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from copra.utils.plain import LARGEST

# A name becomes part of a path and of a shell line, so it is checked here and nowhere else.
# "+" joins the steps of a node's name and "@" marks its seed: neither may occur in a name.
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=60)
]


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed that every random number generator accepts (NumPy's accepts 32 bits)."""

LONGEST_FILE_NAME, LONGEST_PATH = 255, 4095
"""Limits of Linux in bytes. macOS allows as many per file name, but fewer per path."""


def _possible_path(text: str) -> str:
    """Refuse a path that no file can have: systems raise an error even for an existence check."""
    if len(text.encode()) > LONGEST_PATH or any(
        len(part.encode()) > LONGEST_FILE_NAME for part in text.split("/")
    ):
        raise ValueError("is longer than any path may be. Shorten it")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError("names a user's folder that is not known. Write the whole path") from None
    return text


FilePath = Annotated[str, AfterValidator(_possible_path)]
"""The path of a file or folder, with `~` and environment variables not expanded."""

# Upper bounds of settings, far above any use. Beyond them, checking the config alone could take minutes.
MOST_STAGES = 100
MOST_LATENTS = 4096
MOST_DIGITS = 300  # Factors are drawn with float64, which holds numbers of 308 digits.
MOST_ROWS = MOST_STEPS = 10**9
MOST_LAYERS = 512
MOST_HEADS = 1024
MOST_CHANNELS = 2**18

Precision = Literal["float32", "tf32", "bfloat16"]
"""Precision of matrix products. tf32: float32 weights, TF32 products on GPUs that support them."""


def one_or_list(value: Any) -> str:
    """Return the tag ("one" or "list") of a value; pydantic then reports only the problems of that form."""
    return "list" if isinstance(value, list | tuple) else "one"


class Settings(BaseModel):
    """Typed, immutable settings that refuse unknown keys.

    The docstring under a field is its documentation, in the code and in the JSON schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, values: Any) -> Any:
        """Refuse booleans for numbers, which pydantic converts to 1 and 0."""
        problems = []
        for key in _numbers_alone(cls) & values.keys() if isinstance(values, Mapping) else ():
            if any(isinstance(each, bool) for each in _items(values[key])):
                problems.append(
                    f"{key}: should be a number, not true or false (YAML reads yes, no, on and off as these)"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return values

    @model_validator(mode="after")
    def _no_huge_numbers(self) -> Self:
        """Refuse integers beyond `LARGEST`, such as pydantic makes from the text 1e300."""
        for key in _whole_numbers(type(self)):
            if any(isinstance(each, int) and abs(each) > LARGEST for each in _items(getattr(self, key))):
                raise ValueError(f"{key}: is beyond 2^53. Give a smaller number")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")


@cache
def _numbers_alone(kind: type[Settings]) -> frozenset[str]:
    """Return the fields that may hold numbers, directly or in a list or mapping, but no booleans."""
    leaves = {name: set(_leaves(field.annotation)) for name, field in kind.model_fields.items()}
    return frozenset(name for name, each in leaves.items() if each & {int, float} and bool not in each)


@cache
def _whole_numbers(kind: type[Settings]) -> tuple[str, ...]:
    """Return the fields that may hold integers, directly or in a list or mapping."""
    return tuple(name for name, field in kind.model_fields.items() if int in _leaves(field.annotation))


def _leaves(annotation: Any) -> Iterator[type]:
    """Yield the plain types that an annotation contains."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def _items(value: Any) -> Iterator[Any]:
    """Yield the keys and values of a mapping, the items of a list, or the value itself."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    else:
        yield value


def describe(schema: dict[str, Any]) -> None:
    """Insert the docstring under each field into a JSON schema, as the field's description.

    pydantic can do this itself, but only each time that a class is created, which costs more than half of the
    import time of copra's own modules, torch aside.
    """
    for kind in _kinds(Settings):
        part = schema if kind.__name__ == schema["title"] else schema["$defs"].get(kind.__name__, {})
        for name, text in _docstrings(kind).items():
            if name in part.get("properties", {}):
                part["properties"][name]["description"] = text


def _kinds(kind: type[Settings]) -> Iterator[type[Settings]]:
    """Yield all direct and indirect subclasses of a class."""
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _docstrings(kind: type[Settings]) -> dict[str, str]:
    """Return the docstrings under a class's fields, inherited fields included."""
    found = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, Settings):
            try:
                source = inspect.getsource(each)
            except (OSError, TypeError):  # created at run time, so it has no fields of its own
                continue
            (tree,) = ast.parse(textwrap.dedent(source)).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in pairwise(tree.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(words))):
                        found[name] = inspect.cleandoc(words)
    return found
