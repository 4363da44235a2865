"""Arguments of the commands on a whole experiment: its config files and the folder of its results."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from copra.experiment.workflow import Workflow
from copra.utils.errors import CopraError
from copra.utils.files import read_yaml

DEFAULT = Path("config.yaml")


def add_experiment(parser: ArgumentParser, without: str, *, results: bool = True) -> None:
    """Add the config and, unless `results` is false, the folder of results.

    `without` is the help text for a call that names no config.
    """
    parser.add_argument(
        "configs",
        type=Path,
        nargs="*",
        help=f"config files, merged as snakemake --configfile merges them (none: {without})",
    )
    parser.add_argument("--merged", help="the merged config as JSON, in place of what is in the files")
    if results:
        parser.add_argument(
            "--results", type=Path, help="folder of the experiment's results (default: results/NAME)"
        )


def experiment_of(options: Namespace) -> tuple[Workflow, str]:
    """The experiment and the name of its config.

    Raises:
        CopraError: a file cannot be read, or the config is not an experiment's.
    """
    files = options.configs or [DEFAULT]
    source = ", ".join(map(str, files))
    if options.merged is None:
        return workflow_of(files), source
    try:
        config = json.loads(options.merged)
    except (ValueError, RecursionError) as error:
        raise CopraError(f"--merged: not JSON ({error}).") from None
    return Workflow(config, *map(str, files)), source


def workflow_of(files: Sequence[Path]) -> Workflow:
    """Return the experiment of config files, merged as snakemake --configfile merges them.

    Raises:
        CopraError: a file cannot be read, or the config is not an experiment's.
    """
    return Workflow(reduce(merged, map(read_yaml, files)), *map(str, files))


def merged(config: Any, more: Any) -> Any:
    """A config with a second one laid over it: mappings are merged, all else is replaced."""
    if not isinstance(config, Mapping) or not isinstance(more, Mapping):
        return more
    return {**config, **{key: merged(config.get(key), value) for key, value in more.items()}}
