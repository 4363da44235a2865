"""copra data: prepare a split of a task."""

from argparse import ArgumentParser, Namespace

from copra.tasks import AnyTask
from copra.tasks.prepare import prepare
from copra.verbs.common import Coded, add_settings, folder, settings_of


class DataSettings(Coded):
    task: AnyTask
    """The task."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--output", type=folder, required=True, help="folder for the three splits")


def run(options: Namespace) -> None:
    prepare(settings_of(options, DataSettings).task, options.output)
