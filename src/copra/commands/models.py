"""Options by which people name a model: by the folder of a checkpoint, or as the experiment names it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.experiment import DEFAULT, workflow_of
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST
from copra.utils.problems import hint


def add_model(parser: ArgumentParser) -> None:
    """Add the name of a model, and the config of the experiment that it is of."""
    parser.add_argument("model", help="a recipe (its first seed), a model, or the folder of any checkpoint")
    add_config(parser)


def add_config(parser: ArgumentParser) -> None:
    """Add the config of the experiment that names are of."""
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=[DEFAULT],
        metavar="FILE",
        help=f"config files of the experiment (default: {DEFAULT})",
    )


def checkpoint_of(options: Namespace) -> Path:
    """Return the folder of the model that the options name.

    Raises:
        CopraError: neither a checkpoint nor a model of the experiment has this name, or it is not made yet.
    """
    folder = Path(options.model)
    if (folder / MANIFEST).is_file():
        return folder
    files = " ".join(map(str, options.config))
    if not all(file.is_file() for file in options.config):
        raise CopraError(
            f"{options.model}: no folder of a checkpoint, and there is no {files} that could have a model of "
            "this name. Name the folder, or the experiment's config with --config."
        )
    workflow = workflow_of(options.config)
    # A recipe stands for its model of the first seed.
    names = {node.recipe: node.name for node in reversed(workflow.tree.nodes.values())}
    names |= {name: name for name in workflow.tree.nodes}
    if options.model not in names:
        raise CopraError(
            f"{options.model}: no folder of a checkpoint, and no model of {files}{hint(options.model, names)}"
        )
    name = names[options.model]
    folder = Path(workflow.folder) / "models" / name
    if not (folder / MANIFEST).is_file():
        wanted = f"{folder}/{MANIFEST}"
        raise CopraError(
            f"{name}: is not trained yet. Run: snakemake --configfile {files} --cores all {wanted}"
        )
    return folder
