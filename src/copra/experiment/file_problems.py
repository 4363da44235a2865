"""Check that the files that a config names exist."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from copra.experiment.config import Experiment
from copra.methods.few_shot import FewShot
from copra.models.base_files import absence_problem
from copra.utils.errors import CopraError
from copra.utils.problems import shown_path

Part = TypeVar("Part")


def check_files(experiment: Experiment) -> None:
    """Check that the files of all tasks, prompts, texts and local bases exist.

    Raises:
        CopraError: one line per file or folder that is missing, or whose path contains an environment
            variable that is not set.
    """
    if problems := list(_problems(experiment)):
        raise CopraError("\n".join(problems))


def _problems(experiment: Experiment) -> Iterator[str]:
    for name, task in experiment.tasks.items():
        yield from _missing(f"tasks.{name}", task, lambda task: task.files().values())
    for name, step in experiment.steps.items():
        if isinstance(step, FewShot):
            yield from _missing(f"steps.{name}", step, lambda step: [step.path])
    if (text := experiment.importance.text) is not None:
        yield from _missing("importance.text", text, lambda text: [text.path])
    for name, base in experiment.bases.items():
        try:
            if problem := absence_problem(base):
                yield f"bases.{name}.{problem}"
        except CopraError as error:
            yield f"bases.{name}.{error}"


def _missing(where: str, part: Part, files_of: Callable[[Part], Iterable[Path | None]]) -> Iterator[str]:
    """Yield the problems of the files that one part of the config names; `where` is its key."""
    try:
        files = files_of(part)
    except CopraError as error:  # an environment variable is not set; the message begins with the key
        yield f"{where}.{error}"
        return
    for file in files:
        if file is not None and not file.is_file():
            there = "is a folder" if file.is_dir() else "is not there"
            yield f"{where}: {shown_path(file)} {there}. Correct the path, or fetch the file."
