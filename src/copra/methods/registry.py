"""All methods that a config can name: copra's own (`copra.methods`) and plugins' (`copra.utils.plugins`).

Importing it imports the plugins, so what plugins themselves import does not import it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from copra.methods import METHODS
from copra.methods.method import Method, Stage
from copra.utils.plugins import plugins_of

OTHER_STEPS = ("few_shot", "prune", "quantize")
"""Kinds of steps that are no methods."""
METHOD_PLUGINS = plugins_of("copra.methods", [*METHODS, *OTHER_STEPS])
ALL_METHODS: dict[str, type[Method]] = {
    **METHODS,
    **{kind: plugin.load_kind(Method) for kind, plugin in METHOD_PLUGINS.items()},
}

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(ALL_METHODS.values())], Field(discriminator="kind")]  # noqa: UP007
"""Any method, selected by its `kind`."""


def stage_of_kind(kind: str, settings: Mapping[str, Any]) -> Stage:
    """Return a stage of a method of this kind from its settings as plain JSON values."""
    return ALL_METHODS[kind].stage_type.model_validate(settings)
