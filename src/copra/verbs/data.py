"""copra data: prepare a task's splits, and print a line about what each has and what it left out."""

from argparse import ArgumentParser, Namespace

from copra.tasks import AnyTask
from copra.tasks.prepare import prepared, write_split
from copra.verbs.common import Coded, add_settings, folder, made_by, settings_of


class DataSettings(Coded):
    task: AnyTask
    """The task."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--output", type=folder, required=True, help="folder for the three splits")


def run(options: Namespace) -> None:
    for split in prepared(settings_of(options, DataSettings).task).values():
        write_split(split, options.output, made_by(options))
        print(split.summary())
