"""copra data: prepare the splits of a task, or one; print a line about what each has and what it left out."""

from argparse import ArgumentParser, Namespace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from copra.commands.common import Coded, add_settings, folder, made_by, settings_of
from copra.tasks import AnyTask
from copra.tasks.prepare import prepared, write_split
from copra.tasks.task import Split
from copra.utils.errors import CopraError


class DataSettings(Coded):
    task: AnyTask | None = None
    """The task. The rule gives it as --task: a split is prepared again when its rows change, no sooner."""
    split: Split | None = None
    """Which split (null: all)."""
    rows_sha256: str | None = None
    """The sha256 of the split's rows, where they could be known before the run."""
    settings: dict[str, Any] | None = None
    """Elsewhere the settings of the task that concern the split."""
    files: dict[Split, str] | None = None
    """And the contents of the local files that do."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--task", help="the task's settings as JSON, where they are not in --settings")
    parser.add_argument("--output", type=folder, required=True, help="folder for the tables")


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
