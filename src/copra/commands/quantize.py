"""copra quantize: convert the weights of a checkpoint's layers to int8, and measure the difference."""

from argparse import ArgumentParser, Namespace
from importlib.metadata import version

from copra.commands.common import (
    Coded,
    add_settings,
    folder,
    made_by,
    rows_of,
    settings_of,
    summary_of,
)
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.models.checkpoint import device, load_unquantized, save_changed
from copra.models.looping import loop_layers
from copra.models.quantized import compare, quantize
from copra.pruning.scoring.calibration import calibration_batches
from copra.schema.base import QUANTIZATION_BATCH, QUANTIZATION_ROWS, Quantize
from copra.utils.files import MANIFEST


class QuantizeSettings(Coded):
    node: str
    """Name of the model node."""
    quantize: Quantize
    """Settings of the quantization."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to quantize")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=folder, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    settings = settings_of(options, QuantizeSettings)
    set_up_torch(options)
    parent = load_unquantized(options.parent)
    quantized = quantize(options.parent)
    quantized.to(device())  # type: ignore[arg-type]  # transformers wraps `to`, which hides that it is a method
    for model in (parent.model, quantized):
        loop_layers(model, parent.manifest.loop)
    rows = rows_of(options.data, "valid", QUANTIZATION_ROWS)
    batches = calibration_batches(parent.tokenizer, rows, "cot", QUANTIZATION_BATCH, None)
    step = {
        "quantize": settings.quantize.canonical(),
        "torchao": version("torchao"),
        "parent": parent.manifest.weights.sha256,
        "proof": {"rows": len(rows), **compare(parent.model.float(), quantized, batches)},
    }
    more = {
        "quantized": settings.quantize.weights,
        **made_by(options, options.parent / MANIFEST, summary_of(options.data, "valid")),
    }
    save_changed(options.output, quantized, parent, settings.node, step, **more)
