"""Tasks: one file each, one interface (`task.py`), and the registry of their kinds."""

from typing import Annotated, Union

from pydantic import Field

from copra.tasks.gsm8k import Gsm8k
from copra.tasks.task import Task
from copra.tasks.word_sums import WordSums

TASKS: dict[str, type[Task]] = {"gsm8k": Gsm8k, "word_sums": WordSums}

AnyTask = Annotated[Union[tuple(TASKS.values())], Field(discriminator="kind")]  # noqa: UP007
"""Any registered task; its `kind` says which."""
