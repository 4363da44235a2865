"""The base class of everything that a user can set."""

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

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def canonical(self) -> dict[str, Any]:
        """The settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")
