"""All tasks that a config can name: copra's own (`copra.tasks`) and those of plugins (`copra.utils.plugins`).

Importing it imports the plugins, so what plugins themselves import does not import it.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from copra.tasks import TASKS
from copra.tasks.task import Task
from copra.utils.plugins import plugins_of

TASK_PLUGINS = plugins_of("copra.tasks", TASKS)
ALL_TASKS: dict[str, type[Task]] = {
    **TASKS,
    **{kind: plugin.load_kind(Task) for kind, plugin in TASK_PLUGINS.items()},
}

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = Annotated[Union[tuple(ALL_TASKS.values())], Field(discriminator="kind")]  # noqa: UP007
"""Any task, selected by its `kind`."""
