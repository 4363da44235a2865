"""Tiny checkpoints whose units are left out, and the plain ways to leave them out."""

import copy
import types
from collections.abc import Sequence

import plain
import torch
from torch import nn

from copra.data.batch import Batch, collate
from copra.data.sequences import IGNORED, GenerationSpec, Sample, lay_out
from copra.data.tokenization import markers_of, tokenize
from copra.models.anatomy import attention_output, blocks, ffn_output
from copra.models.checkpoint import Checkpoint
from copra.models.extra_modules import make_extra_modules
from copra.schema.units import Unit
from copra.tasks.task import Row
from helpers.manifests import manifest


def make_checkpoint(made: types.SimpleNamespace, objective: str = "cot") -> Checkpoint:
    """A checkpoint around a tiny model: it writes its steps, or thinks in two projected latents."""
    markers = markers_of(made.tokenizer)
    if objective == "cot":
        decoding = GenerationSpec((), 0, "hidden", markers.latent, ())
        return Checkpoint(made.model, made.tokenizer, manifest(decoding=decoding))
    decoding = GenerationSpec((markers.start,), 2, "hidden", markers.latent, (markers.end,), "projected")
    torch.manual_seed(1)
    extra_modules = make_extra_modules(made.model, {"projection": {}}).eval()
    return Checkpoint(made.model, made.tokenizer, manifest(decoding=decoding), extra_modules)


def samples_of(checkpoint: Checkpoint, rows: Sequence[Row]) -> list[Sample]:
    """Steps and answer after the question, or the answer after the latents."""
    decoding = checkpoint.decoding
    found = []
    for row in tokenize(checkpoint.tokenizer, rows):
        if not decoding.latents:
            found.append(lay_out(row, skip=0, latents=0, markers=None))
            continue
        before = row.question + list(decoding.prefix_ids)
        thought = [decoding.latent_token] * decoding.latents + list(decoding.suffix_ids)
        labels = [IGNORED] * len(before + thought) + row.answer
        found.append(Sample(row.id, before + thought + row.answer, labels, len(before), decoding.latents))
    return found


def batches_of(checkpoint: Checkpoint, rows: Sequence[Row], size: int = 3) -> list[Batch]:
    samples = samples_of(checkpoint, rows)
    return [collate(samples[first : first + size], pad=0) for first in range(0, len(samples), size)]


def plain_loss(checkpoint: Checkpoint, model: nn.Module, rows: Sequence[Row]) -> float:
    """The mean loss of a model, an example at a time, without cache and padding."""
    decoding = checkpoint.decoding
    feed = checkpoint.extra_modules["projection"] if checkpoint.extra_modules else None
    with torch.no_grad():
        losses = [
            plain.loss(model, sample, decoding, feed=feed).item() for sample in samples_of(checkpoint, rows)
        ]
    return sum(losses) / len(losses)


def without(checkpoint: Checkpoint, units: Sequence[Unit], delete_layers: bool = True) -> nn.Module:
    """A copy of the model in which units give nothing: weights that read them are 0, and layers are taken
    out of the list or give nothing either."""
    model = copy.deepcopy(checkpoint.model)
    layers, gone = blocks(model), []
    for kind, layer, index in units:
        attention, ffn = attention_output(layers[layer]), ffn_output(layers[layer])
        sizes = checkpoint.shape.layers[layer]
        if kind == "layers":
            gone.append(layer)
            for projection in (attention, ffn):
                for parameter in projection.parameters():
                    parameter.data.zero_()
        elif kind == "neurons":
            reading(ffn)[index] = 0
        else:
            heads = sizes.query_heads // sizes.kv_heads if kind == "kv_groups" else 1
            width = heads * sizes.head_dim
            reading(attention)[index * width : (index + 1) * width] = 0
    if delete_layers:
        for layer in sorted(gone, reverse=True):
            del layers[layer]
    return model


def reading(projection: nn.Module) -> torch.Tensor:
    """The weights of a projection with its inputs along the first dimension: of GPT-2 they are stored so."""
    weight = projection.weight.data
    return weight.T if isinstance(projection, nn.Linear) else weight
