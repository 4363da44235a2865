"""All scores computed in one forward and backward pass over a calibration set, for every kind of unit."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.data.batch import Batch
from copra.data.sequences import GenerationSpec
from copra.models.anatomy import attention_output, blocks
from copra.models.shape import shape_of
from copra.pruning.scoring.heads import head_scores, head_sums
from copra.pruning.scoring.layers import block_rows, layer_scores, layer_sums
from copra.pruning.scoring.neurons import neuron_scores, neuron_sums
from copra.pruning.scoring.objective import example_losses
from copra.pruning.scoring.record import Record, Sums, Tokens, recording
from copra.pruning.scoring.scores import ScoreRow, score_row
from copra.pruning.scoring.weights import magnitude, taylor, weight_scores
from copra.schema.shape import LayerShape
from copra.utils.errors import CopraError


@dataclass
class _Totals:
    """Sums over the calibration set: for all layers together, and for the heads and neurons of each layer."""

    heads: list[Sums]
    neurons: list[Sums]
    layers: Sums = field(default_factory=dict)
    examples: int = 0
    tokens: int = 0


def pass_scores(
    model: PreTrainedModel,
    extra_modules: nn.ModuleDict,
    batches: Iterable[Batch],
    decoding: GenerationSpec | None,
) -> list[ScoreRow]:
    """Return scores of layers, blocks, query heads, KV groups (sums over their heads) and FFN neurons.

    The loss is the mean over all examples of `copra.pruning.scoring.objective.example_losses`. Metrics:

    - `gradient`, `gradient_token` and `gradient_batch` of layers, heads and neurons: the derivative of the
      loss for a mask on the unit, its absolute value taken per example, per token, or of the whole;
    - `taylor` and `magnitude` of the same: the sums of |w dL/dw| and of |w| over the unit's weights;
    - `cosine` of layers, `angular` and `angular_mean` of blocks: the angle by which they turn the residual
      stream;
    - `activation` of heads and neurons and `contribution` of heads: the size of their outputs.

    The scores do not depend on padding or batch size. Memory holds the weights, one gradient of the layers'
    weights, and the activations of one batch. The model and its extra modules are left unchanged.

    Raises:
        CopraError: there are no batches, an example has no supervised position, or the model type is
            unknown.
    """
    layers = shape_of(model.config.to_dict()).layers
    totals = _Totals([{} for _ in layers], [{} for _ in layers])
    with only_layers_learn(model, extra_modules):

        def add(record: Record, tokens: Tokens) -> None:
            _add_pass(totals, model, record, tokens, layers)

        totals.examples, totals.tokens = run_passes(model, extra_modules, batches, decoding, add)
        return _rows(totals, model, layers)


def run_passes(
    model: PreTrainedModel,
    extra_modules: nn.ModuleDict,
    batches: Iterable[Batch],
    decoding: GenerationSpec | None,
    add: Callable[[Record, Tokens], None],
) -> tuple[int, int]:
    """Run each batch forward and backward; return the numbers of examples and tokens.

    `add` is called without gradients, with what was recorded and the batch's tokens. What it does not keep
    is freed before the next batch. Gradients of weights accumulate in the model: see `only_layers_learn`.

    Raises:
        CopraError: as `pass_scores` does.
    """
    examples = count = 0
    for batch in batches:
        placed = batch.to(model.device)
        with torch.enable_grad(), recording(model) as record:
            # The gradient of the sum is each example's own: no example attends to another.
            example_losses(model, extra_modules, placed, decoding).sum().backward()
        tokens = Tokens.of(placed)
        with torch.no_grad():
            add(record, tokens)
        examples += len(placed)
        count += sum(tokens.counts)
    if not examples:
        raise CopraError("scores: the calibration set is empty, so there is nothing to score on.")
    return examples, count


def _add_pass(
    totals: _Totals, model: PreTrainedModel, record: Record, tokens: Tokens, layers: tuple[LayerShape, ...]
) -> None:
    add_sums(totals.layers, layer_sums(record, tokens))
    for layer, block in enumerate(blocks(model)):
        outputs, neurons = tokens.both(record.heads[layer]), tokens.both(record.neurons[layer])
        add_sums(totals.heads[layer], head_sums(*outputs, tokens, attention_output(block), layers[layer]))
        add_sums(totals.neurons[layer], neuron_sums(*neurons, tokens))


def add_sums(totals: Sums, sums: Mapping[str, Tensor]) -> None:
    """Add the sums of a batch to those of earlier ones."""
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + value


def _rows(totals: _Totals, model: PreTrainedModel, layers: tuple[LayerShape, ...]) -> list[ScoreRow]:
    examples, tokens = totals.examples, totals.tokens
    rows: list[ScoreRow] = []
    weights = [_of_weights(*each, examples) for each in zip(blocks(model), layers, strict=True)]
    for layer, (sizes, of_weights) in enumerate(zip(layers, weights, strict=True)):
        heads = head_scores(totals.heads[layer], examples, tokens) | of_weights["head"]
        groups = {metric: scores.view(sizes.kv_heads, -1).sum(1) for metric, scores in heads.items()}
        neurons = neuron_scores(totals.neurons[layer], examples) | of_weights["neuron"]
        for unit, metrics in (("head", heads), ("kv_group", groups), ("neuron", neurons)):
            rows += [
                score_row(metric, score, unit, layer, index)
                for metric, scores in metrics.items()
                for index, score in enumerate(scores.tolist())
            ]
    whole = layer_scores(totals.layers, examples, tokens)
    for metric in ("taylor", "magnitude"):
        whole[metric] = torch.stack([of_weights["layer"][metric] for of_weights in weights])
    rows += [
        score_row(metric, score, "layer", layer)
        for metric, scores in whole.items()
        for layer, score in enumerate(scores.tolist())
    ]
    return rows + block_rows(totals.layers, examples, tokens)


def _of_weights(block: nn.Module, sizes: LayerShape, examples: int) -> dict[str, dict[str, Tensor]]:
    """Return scores of a layer's weights by unit (layer, head, neuron) and metric."""
    large, missed = weight_scores(block, sizes, magnitude), weight_scores(block, sizes, taylor)
    # The gradients in the model are those of the sum over examples.
    return {unit: {"taylor": missed[unit] / examples, "magnitude": large[unit]} for unit in large}


@contextlib.contextmanager
def only_layers_learn(model: PreTrainedModel, extra_modules: nn.ModuleDict) -> Iterator[None]:
    """Set evaluation mode and gradients of the layers' weights alone; restore all on exit."""
    modules = [*model.modules(), *extra_modules.modules()]
    parameters = [*model.parameters(), *extra_modules.parameters()]
    modes = [module.training for module in modules]
    states = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    model.eval().requires_grad_(False)
    extra_modules.eval().requires_grad_(False)
    blocks(model).requires_grad_(True)
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, (learns, gradient) in zip(parameters, states, strict=True):
            parameter.requires_grad_(learns)
            parameter.grad = gradient
