"""Tasks: one file per task, one interface (`task.py`), and copra's own by their kinds."""

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
"""copra's own tasks; `copra.tasks.registry` has those of plugins too."""
