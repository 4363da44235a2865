"""Leftovers: results in an experiment's folder that its configs no longer produce."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from copra.experiment.workflow import Workflow
from copra.plan.jobs import MODELS, Job, jobs_of
from copra.plan.machine import ASKING
from copra.utils.errors import CopraError
from copra.utils.heartbeat import running
from copra.utils.locking import holder_of

KINDS = (
    "data",
    "models",
    "scores",
    "plans",
    "curves",
    "evaluations",
    "latency.parquet",
    "conversions",
    "tables",
    "figures",
    "logs",
    "benchmarks",
    "tracking",
)
"""Files and folders that copra writes in an experiment's folder, besides `state`. Nothing else is touched."""

PLAN_LOG = "logs/plan.log"
"""The log of a rule that is not part of a whole run."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that no recipe produces. `size` is in bytes, all files of a folder together."""

    kind: str
    path: Path
    size: int


def leftovers(workflows: Sequence[Workflow]) -> list[Leftover]:
    """Return the results that no recipe of these experiments produces, by kind and path.

    The experiments share one folder. A folder without any needed file is one leftover. A link can be a
    leftover, its target never.
    """
    (folder,) = {Path(workflow.folder) for workflow in workflows}
    if not folder.is_dir():
        return []
    jobs = [job for workflow in workflows for job in jobs_of(workflow).values()]
    needed = {path for job in jobs for path in _files(job, folder)} | {folder / PLAN_LOG}
    above = {parent for path in needed for parent in path.parents}
    found = [
        Leftover(kind, path, _size(path))
        for kind in KINDS
        for path in _unneeded(folder / kind, needed, above)
    ]
    return [*found, *(Leftover("state", path, _size(path)) for path in _abandoned(folder, jobs))]


def remove(leftover: Leftover) -> None:
    """Remove a leftover; the state of a job only if no job has begun to use it since.

    Raises:
        CopraError: it cannot be removed.
    """
    path = leftover.path
    try:
        if leftover.kind == "state" and holder_of(path) is not None:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CopraError(
            f"{path}: could not be removed ({error.strerror}). Check its permissions, then run again."
        ) from None


def _files(job: Job, folder: Path) -> Iterator[Path]:
    """Yield all files and folders that only this job writes."""
    yield from (job.log, job.benchmark)
    if job.rule == "train":
        yield folder / "tracking" / job.name
    for output in job.outputs:
        # More files than the declared ones are beside a split and in a checkpoint.
        yield output.parent if job.rule in ("data", *MODELS) else output


def _unneeded(path: Path, needed: set[Path], above: set[Path]) -> Iterator[Path]:
    # The temporary files of a killed job belong to the result that it was writing.
    result = path.with_name(re.sub(r"^\.(.+)\.tmp-\d+(-old)?$", r"\1", path.name))
    if result in needed:
        return
    if path in above:
        for child in [] if path.is_symlink() or not path.is_dir() else sorted(path.iterdir()):
            yield from _unneeded(child, needed, above)
    elif path.exists() or path.is_symlink():
        yield path


def _abandoned(folder: Path, jobs: Sequence[Job]) -> Iterator[Path]:
    """Yield the states of trainings and evaluations that will not be resumed.

    No job uses such a state, and either no recipe produces its model any more, or the result exists, so the
    state belongs to other settings. States that name no model, such as the measurements of searches, are
    kept.
    """
    unfinished = {(job.rule, job.name) for job in jobs if not job.outputs[0].is_file()}
    for status in running(folder):
        rules = ("train",) if status.unit == "steps" else ASKING
        resumes = any((rule, status.node) in unfinished for rule in rules)
        if status.stopped and not resumes and holder_of(status.state) is None:
            yield status.state


def _size(path: Path) -> int:
    files: Iterable[Path] = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
