"""How much each attention head matters, from one forward and backward pass over a calibration set.

a_h is the output of head h before the output projection: the input of that projection is the heads' outputs
side by side. Weight gradients are not needed for any of the metrics and are not computed.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from copra.errors import CopraError
from copra.importance.scores import ScoreRow, score_row
from copra.models.anatomy import attention_output, blocks
from copra.models.shape import LayerShape, shape_of
from copra.reasoning.layout import IGNORED

METRICS = ("gradient", "activation")


def head_scores(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[ScoreRow]:
    """Scores of all query heads (unit head), and their sums over each KV group (unit kv_group).

    `gradient`: the mean over examples of |sum over tokens and channels of a_h . dL/da_h|, with L the mean
    cross-entropy over the example's own supervised positions (Michel et al. 2019, arXiv 1905.10650,
    section 4.1). `activation`: sqrt of the sum over examples and the head's channels of (mean over tokens
    of |a_h|)^2 (Minitron, arXiv 2407.14679, section 2.2). Neither depends on how examples are batched.

    A batch holds `input_ids`, `attention_mask` and `labels`, [B, T] each; `labels[b, t]` is
    `input_ids[b, t]` where the loss is taken and -100 elsewhere (not shifted).

    Raises:
        CopraError: there are no batches, an example has no supervised position, or the model type is not
            known.
    """
    layers = shape_of(model.config.to_dict()).layers
    gradient = [torch.zeros(layer.query_heads, dtype=torch.float64) for layer in layers]
    squares = [torch.zeros(layer.query_heads, dtype=torch.float64) for layer in layers]
    examples = 0
    with _frozen(model), torch.enable_grad():
        for batch in batches:
            batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")}
            outputs, losses = _forward(model, batch, first_example=examples)
            # The gradient of the sum is each example's own: no example sees another.
            gradients = torch.autograd.grad(losses.sum(), outputs)
            for index, layer in enumerate(layers):
                products, means = _per_example(
                    outputs[index].detach(), gradients[index], batch["attention_mask"], layer
                )
                gradient[index] += products.abs().sum(0)
                squares[index] += means.square().sum((0, 2))
            examples += len(losses)
    if not examples:
        raise CopraError("head scores: the calibration set is empty, so there is nothing to score on.")
    return [
        row
        for index, layer in enumerate(layers)
        for metric, scores in zip(METRICS, (gradient[index] / examples, squares[index].sqrt()), strict=True)
        for row in _rows(metric, scores, index, layer)
    ]


def _forward(
    model: PreTrainedModel, batch: Mapping[str, Tensor], first_example: int
) -> tuple[list[Tensor], Tensor]:
    """The heads' outputs of every layer, [B, T, H*D] each, and the loss of every example, [B].

    Logits are computed at the supervised positions only.
    """
    supervised = batch["labels"][:, 1:] != IGNORED
    counts = supervised.sum(1)
    if not counts.all():
        example = first_example + int(counts.argmin())
        raise CopraError(
            f"head scores: example {example} of the calibration set has no supervised position, so it has no "
            "loss. Leave it out, or allow longer sequences if its answer was cut off."
        )
    outputs: list[Tensor] = []
    hooks = [
        attention_output(block).register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
        for block in blocks(model)
    ]
    try:
        embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        hidden = model.base_model(
            inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    logits = _precise(model.get_output_embeddings()(hidden[:, :-1][supervised]))
    losses = functional.cross_entropy(logits, batch["labels"][:, 1:][supervised], reduction="none")
    example = supervised.nonzero()[:, 0]
    return outputs, losses.new_zeros(len(counts)).index_add(0, example, losses) / counts


def _per_example(
    outputs: Tensor, gradients: Tensor, mask: Tensor, layer: LayerShape
) -> tuple[Tensor, Tensor]:
    """Sums of a_h . dL/da_h, [B, H], and means over tokens of |a_h|, [B, H, D], in float64 on the CPU."""
    heads = (*outputs.shape[:2], layer.query_heads, layer.head_dim)
    mask = mask[:, :, None, None]
    outputs = _precise(outputs).view(heads) * mask
    products = (outputs * _precise(gradients).view(heads)).sum((1, 3))
    means = outputs.abs().sum(1) / mask.sum(1)
    return products.cpu().double(), means.cpu().double()


def _rows(metric: str, scores: Tensor, layer: int, sizes: LayerShape) -> Iterator[ScoreRow]:
    for head, score in enumerate(scores):
        yield score_row(metric, score, "head", layer, head)
    for group, score in enumerate(scores.view(sizes.kv_heads, -1).sum(1)):
        yield score_row(metric, score, "kv_group", layer, group)


@contextlib.contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode and without gradients of its weights, and back as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(training)


def _precise(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
