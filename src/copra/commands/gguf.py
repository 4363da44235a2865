"""copra gguf: write a checkpoint as a GGUF file, for llama.cpp."""

import importlib.util
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from copra.commands.models import add_model, checkpoint_of
from copra.models.checkpoint import load_checkpoint
from copra.models.gguf_file import WeightKind, write_gguf
from copra.utils.errors import CopraError


def arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("file", type=Path, help="file to write, such as model.gguf; it must not exist")
    parser.add_argument(
        "--type",
        choices=get_args(WeightKind),
        default="f16",
        help="type of the weights: single or half precision, or blocks of 8 or 4 bits (default: %(default)s)",
    )


def run(options: Namespace) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise CopraError("writing GGUF files needs the package gguf. Run pip install gguf.")
    if options.file.exists():
        raise CopraError(f"{options.file}: is there already. Name another file, or remove it.")
    checkpoint = load_checkpoint(checkpoint_of(options))
    write_gguf(checkpoint, options.file, options.type)
    size = options.file.stat().st_size / 1e6
    print(f"{options.file}: {checkpoint.manifest.node}, {options.type}, {size:,.1f} MB")
    if checkpoint.decoding is not None and checkpoint.decoding.has_recurrent_latents:
        print(
            "It thinks in latents, which llama.cpp's own programs leave out: their answers are not its own. "
            "copra.generation.llama_cpp runs it with its latents."
        )
