"""copra executorch: write a checkpoint as a program of ExecuTorch, for phones."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from copra.commands.models import add_model, checkpoint_of
from copra.models.checkpoint import load_checkpoint
from copra.models.executorch_file import PROGRAM, WeightKind, need_executorch, write_executorch
from copra.utils.errors import CopraError


def arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    parser.add_argument(
        "--type",
        choices=get_args(WeightKind),
        default="f32",
        help="type of the weights: single precision or 8 bits (default: %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="positions of a question with its answer, at most (default: 512, or those that the model has)",
    )


def run(options: Namespace) -> None:
    need_executorch()
    if options.folder.exists():
        raise CopraError(f"{options.folder}: is there already. Name another folder, or remove it.")
    checkpoint = load_checkpoint(checkpoint_of(options))
    write_executorch(checkpoint, options.folder, options.type, options.max_length)
    size = (options.folder / PROGRAM).stat().st_size / 1e6
    print(f"{options.folder}: {checkpoint.manifest.node}, {options.type}, {size:,.1f} MB")
