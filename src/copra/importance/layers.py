"""How much each layer changes the residual stream, from one forward pass over a calibration set.

x^l is the input of block l and x^L the output of the last block, before the final norm: hooks on the
blocks take them, because `hidden_states[-1]` is after that norm.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from copra.errors import CopraError
from copra.importance.scores import ScoreRow, score_row
from copra.models.anatomy import blocks


@torch.no_grad()
def layer_scores(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[ScoreRow]:
    """Scores of all layers and of all blocks of neighbouring layers.

    `cosine`, unit layer: 1 - E cos(x^l, x^{l+1}) over all tokens, the block influence of ShortGPT (arXiv
    2403.03853, equation 1). `angular`, unit block: E arccos(cos(x^l, x^{l+n})) / pi at the last token of
    each example, for every start l and length n (arXiv 2403.17887, section 3.2). Logits are not computed.

    A batch holds `input_ids` and `attention_mask`, [B, T] each; padding is left out of every mean.

    Raises:
        CopraError: there are no batches, or the model type is not known.
    """
    n_layers = len(blocks(model))
    similarity = torch.zeros(n_layers, dtype=torch.float64)
    distance = torch.zeros(n_layers, n_layers + 1, dtype=torch.float64)
    tokens = examples = 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            mask = batch["attention_mask"].to(model.device)
            cosines, last = _one_batch(model, batch["input_ids"].to(model.device), mask)
            similarity += cosines
            for length in range(1, n_layers + 1):
                cosine = (last[:-length] * last[length:]).sum(-1).clamp(-1, 1)
                distance[: n_layers + 1 - length, length] += (cosine.arccos() / math.pi).sum(-1)
            tokens += int(mask.sum())
            examples += len(mask)
    finally:
        model.train(training)
    if not examples:
        raise CopraError("layer scores: the calibration set is empty, so there is nothing to score on.")
    return [
        score_row("cosine", 1 - similarity[layer] / tokens, "layer", layer) for layer in range(n_layers)
    ] + [
        score_row("angular", distance[start, length] / examples, "block", start, length=length)
        for length in range(1, n_layers + 1)
        for start in range(n_layers + 1 - length)
    ]


def _one_batch(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over tokens of cos(x^l, x^{l+1}), [L], and unit vectors along x^l at the last tokens, [L+1, B, d].

    Both in float64 on the CPU: an angle near 0 has half the digits of its cosine.
    """
    rows = torch.arange(len(mask), device=mask.device)
    last_column = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    previous: Tensor | None = None
    cosines: list[Tensor] = []
    last: list[Tensor] = []

    def see(state: Tensor) -> None:
        nonlocal previous
        if previous is not None:
            cosine = functional.cosine_similarity(previous.float(), state.float(), dim=-1)
            cosines.append(cosine[mask.bool()].cpu().double().sum())
        last.append(functional.normalize(state[rows, last_column].cpu().double(), dim=-1))
        previous = state

    with _seeing_states(model, see):
        model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return torch.stack(cosines), torch.stack(last)


@contextlib.contextmanager
def _seeing_states(model: PreTrainedModel, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Show x^0, x^1, ..., x^L, [B, T, d] each, to `see` while the model runs forward."""
    layers = blocks(model)
    hooks = [layer.register_forward_pre_hook(lambda _, args: see(args[0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, output: see(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
