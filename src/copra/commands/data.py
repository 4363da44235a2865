"""copra data: prepare all splits of a task, or one; print the numbers of rows kept and left out per split."""

from argparse import ArgumentParser, Namespace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from copra.commands.common import Coded, add_settings, folder, made_by, settings_of
from copra.tasks.prepare import prepared, write_split
from copra.tasks.registry import AnyTask
from copra.tasks.task import Split
from copra.utils.errors import CopraError


class DataSettings(Coded):
    task: AnyTask | None = None
    """Settings of the task. The rule passes them as --task instead, so that a split is prepared again only if
    its rows change."""
    split: Split | None = None
    """Split to prepare (null: all)."""
    rows_sha256: str | None = None
    """The sha256 of the split's rows, if they are known before the run."""
    settings: dict[str, Any] | None = None
    """Settings of the task that affect the split, if its rows are not known before the run."""
    files: dict[Split, str] | None = None
    """Content addresses of the local files that affect the split, in the same case."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--task", help="the task's settings as JSON, unless they are in --settings")
    parser.add_argument("--output", type=folder, required=True, help="folder to write the tables to")


def run(options: Namespace) -> None:
    settings = settings_of(options, DataSettings)
    for split in prepared(_task(settings, options)).values():
        if settings.split not in (None, split.split):
            continue
        if settings.rows_sha256 not in (None, split.digest):
            raise CopraError(
                f"the {split.split} split has other rows than when the run was planned: a file of the task "
                "has changed. Run snakemake again."
            )
        write_split(split, options.output, made_by(options))
        print(split.summary())


def _task(settings: DataSettings, options: Namespace) -> AnyTask:
    if settings.task is not None:
        return settings.task
    if options.task is None:
        raise CopraError("--task: no task is given. Give its settings, as config.yaml has them, as JSON.")
    try:
        return TypeAdapter(AnyTask).validate_json(options.task)
    except ValidationError as error:
        raise CopraError(f"--task: {error}") from None
