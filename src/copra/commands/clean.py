"""copra clean: list, and with --delete remove, results that belong to no recipe of the given configs."""

from argparse import ArgumentParser, Namespace
from itertools import groupby
from pathlib import Path

from copra.commands.experiment import workflow_of
from copra.experiment.workflow import Workflow
from copra.plan.leftovers import Leftover, leftovers, remove
from copra.utils.errors import CopraError
from copra.utils.run_lock import LOCKS


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "configs",
        type=Path,
        nargs="+",
        help="config files, one experiment each; give all that share a results folder",
    )
    parser.add_argument(
        "--merge", action="store_true", help="merge the files into one config, as snakemake --configfile does"
    )
    parser.add_argument(
        "--delete", action="store_true", help="remove the listed results (default: only list them)"
    )


def run(options: Namespace) -> None:
    folders: dict[str, list[Workflow]] = {}
    for workflow in _workflows(options.configs, options.merge):
        folders.setdefault(workflow.folder, []).append(workflow)
    found = {folder: leftovers(workflows) for folder, workflows in folders.items()}
    for folder, left in found.items():
        print(_page(folder, left))
    if not options.delete:
        if any(found.values()):
            print("Nothing was removed: copra clean --delete does it.")
        return
    if LOCKS.is_dir() and any(LOCKS.iterdir()):
        raise CopraError(
            f"{LOCKS}: Snakemake works in this folder. Wait for its end, or run snakemake --unlock if it was "
            "killed."
        )
    for left in found.values():
        for each in left:
            remove(each)
    print("Removed.")


def _workflows(configs: list[Path], merge: bool) -> list[Workflow]:
    return [workflow_of(files) for files in ([configs] if merge else [[path] for path in configs])]


def _page(folder: str, left: list[Leftover]) -> str:
    """Return the report on a folder: each leftover path with its size, and sums per kind and in total."""
    if not left:
        return f"{folder}: nothing is left over."
    lines = []
    for kind, group in groupby(left, key=lambda each: each.kind):
        members = list(group)
        lines.append(f"{_size(sum(each.size for each in members))}  {kind}: {len(members)}")
        lines += [f"{_size(each.size)}    {each.path}" for each in members]
    total = _size(sum(each.size for each in left)).strip()
    return "\n".join([f"{folder}: {len(left)} left over, {total}", *lines])


def _size(number: float) -> str:
    """Return a number of bytes in decimal units, ten characters wide."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.95:
            return f"{number:7.0f} {unit:2}" if unit == "B" else f"{number:7.1f} {unit}"
        number /= 1000
    return f"{number:7.1f} TB"
