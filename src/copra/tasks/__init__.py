"""Tasks: one file per task, one interface (`task.py`), and the registry of their kinds."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from copra.tasks.addition import Addition
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.modular import Modular
from copra.tasks.multiplication import Multiplication
from copra.tasks.prosqa import Prosqa
from copra.tasks.rows import Rows
from copra.tasks.task import Task
from copra.tasks.word_sums import WordSums

TASKS: dict[str, type[Task]] = {
    "addition": Addition,
    "gsm8k": Gsm8k,
    "modular": Modular,
    "multiplication": Multiplication,
    "prosqa": Prosqa,
    "rows": Rows,
    "word_sums": WordSums,
}

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = Annotated[Union[tuple(TASKS.values())], Field(discriminator="kind")]  # noqa: UP007
"""Any registered task, selected by its `kind`."""
