"""Scores by the metric of a plugin (`copra.schema.pass_metric`), computed in one pass per batch."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import GenerationSpec
from copra.models.anatomy import blocks
from copra.models.shape import shape_of
from copra.pruning.scoring.passes import add_sums, only_layers_learn, run_passes
from copra.pruning.scoring.record import Record, Sums, Tokens
from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.schema.metrics import METRIC_PLUGINS, SCORED_AS, plugin_metrics
from copra.schema.pass_metric import LayerPass, LayerSums, PassMetric
from copra.schema.shape import LayerShape
from copra.schema.units import UnitKind


def plugin_scores(
    name: str,
    model: PreTrainedModel,
    extra_modules: nn.ModuleDict,
    batches: Iterable[Batch],
    decoding: GenerationSpec | None,
) -> list[ScoreRow]:
    """Return the scores of all units that a plugin's metric scores. The model is left unchanged.

    Raises:
        CopraError: as `copra.pruning.scoring.passes.pass_scores` does, or the metric returns other scores
            than one per unit of its kinds.
    """
    metric = plugin_metrics()[name]
    layers = list(zip(blocks(model), shape_of(model.config.to_dict()).layers, strict=True))
    totals: list[Sums] = [{} for _ in layers]

    def add(record: Record, tokens: Tokens) -> None:
        for layer, (block, shape) in enumerate(layers):
            add_sums(totals[layer], metric.sums(_layer_pass(layer, block, shape, record, tokens)))

    with only_layers_learn(model, extra_modules):
        examples, tokens = run_passes(model, extra_modules, batches, decoding, add)
        rows: list[ScoreRow] = []
        with torch.no_grad():
            for layer, (block, shape) in enumerate(layers):
                seen = LayerSums(layer, block, shape, examples, tokens, totals[layer])
                rows += _rows(name, metric, layer, shape, metric.scores(seen))
        return rows


def _layer_pass(layer: int, block: nn.Module, shape: LayerShape, record: Record, tokens: Tokens) -> LayerPass:
    heads, heads_gradient = tokens.both(record.heads[layer])
    neurons, neurons_gradient = tokens.both(record.neurons[layer])
    outputs, outputs_gradient = tokens.both(record.states[layer + 1])
    return LayerPass(
        layer=layer,
        block=block,
        shape=shape,
        tokens=tokens.counts,
        inputs=tokens.values(record.states[layer]),
        outputs=outputs,
        outputs_gradient=outputs_gradient,
        heads=heads,
        heads_gradient=heads_gradient,
        neurons=neurons,
        neurons_gradient=neurons_gradient,
        example_sums=tokens.sums,
    )


def _rows(
    name: str, metric: PassMetric, layer: int, shape: LayerShape, scores: Mapping[UnitKind, Tensor]
) -> Iterator[ScoreRow]:
    """Yield the scores of a layer's units."""
    sizes = {"layers": 1, "kv_groups": shape.kv_heads, "heads": shape.query_heads, "neurons": shape.ffn}
    found = {kind: values.reshape(-1).tolist() for kind, values in scores.items()}
    expected = {kind: sizes[kind] for kind in metric.units}
    if {kind: len(values) for kind, values in found.items()} != expected:
        numbers = {kind: len(values) for kind, values in found.items()}
        raise METRIC_PLUGINS[name].problem(
            f"it gives layer {layer} the numbers of scores {numbers}, and the layer has the units {expected}"
        )
    for kind, values in found.items():
        for index, score in enumerate(values):
            yield score_row(name, score, SCORED_AS[kind], layer, layer if kind == "layers" else index)
