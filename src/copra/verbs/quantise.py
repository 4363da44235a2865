"""copra quantise: the same checkpoint with int8 weights in its layers, and what that changed."""

from argparse import ArgumentParser, Namespace
from importlib.metadata import version

from copra.errors import CopraError
from copra.models.settings import Quantise
from copra.verbs.common import Coded, add_settings, add_threads, folder, rows_of, settings_of, use_threads

PROOF_ROWS, PROOF_BATCH = 64, 8


class QuantiseSettings(Coded):
    node: str
    """The node's name."""
    quantise: Quantise
    """How."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    parser.add_argument("--parent", type=folder, required=True, help="checkpoint to quantise")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=folder, required=True, help="folder for the checkpoint")


def run(options: Namespace) -> None:
    settings = settings_of(options, QuantiseSettings)
    use_threads(options)
    from copra.models.checkpoint import answering_parts, device, load_checkpoint, save_checkpoint
    from copra.models.quantised import compare, quantise
    from copra.models.tokens import pad_id, tokenise
    from copra.reasoning.forward import collate
    from copra.reasoning.layout import lay_out

    parent = load_checkpoint(options.parent)
    if parent.manifest.get("quantised") is not None:
        raise CopraError(
            f"{options.parent}: is quantised already; quantise the checkpoint that it was made of."
        )
    quantised = quantise(options.parent).to(device())
    rows = rows_of(options.data, "valid", PROOF_ROWS)
    samples = [lay_out(row, skip=0, latents=0, markers=None) for row in tokenise(parent.tokenizer, rows)]
    firsts = range(0, len(samples), PROOF_BATCH)
    batches = [collate(samples[first : first + PROOF_BATCH], pad_id(parent.tokenizer)) for first in firsts]
    step = {
        "step": settings.node.rsplit("+", 1)[-1],
        "quantise": settings.quantise.canonical(),
        "torchao": version("torchao"),
        "parent": parent.manifest["weights"]["sha256"],
        "proof": {"rows": len(rows), **compare(parent.model.float(), quantised, batches)},
    }
    kept = ("base", "seed", "method", "decoding", "dense_shape", "typical_answer", "training_flops")
    manifest = {
        **{name: parent.manifest[name] for name in kept},
        "node": settings.node,
        "lineage": [*parent.manifest["lineage"], step],
        "quantised": settings.quantise.weights,
    }
    save_checkpoint(
        options.output,
        quantised,
        parent.tokenizer,
        manifest,
        parts=answering_parts(parent),
        part_settings=(parent.manifest.get("parts") or {}).get("settings"),
    )
