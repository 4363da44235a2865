"""Which weights a stage trains: all, or low-rank adapters that are merged at the end."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from copra.data.sequences import Markers
from copra.methods.reasoning_model import ReasoningModel
from copra.models.families import family_of
from copra.schema.training import Lora


@contextlib.contextmanager
def adapted(
    reasoner: ReasoningModel, lora: Lora | None, frozen: Sequence[str], markers: Markers
) -> Iterator[list[dict[str, Any]]]:
    """Yields the optimizer's parameter groups; afterwards adapters are merged and everything may be trained.

    `frozen` names "model" and parts that stay as they are.
    """
    for name, module in {"model": reasoner.model, **reasoner.parts}.items():
        module.requires_grad_(name not in frozen)
    if lora is None or "model" in frozen:
        yield [{"params": [p for p in reasoner.parameters() if p.requires_grad]}]
        reasoner.requires_grad_(True)
        return
    import peft

    # The wrapper puts its layers into the model itself, which goes on being used as it is.
    wrapper = peft.get_peft_model(
        reasoner.model,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            fan_in_fan_out=family_of(reasoner.model.config.model_type).layout.transposed,
        ),
    )
    rows, handles = _train_rows(reasoner.model, sorted({markers.start, markers.latent, markers.end}))
    others = [p for p in reasoner.parameters() if p.requires_grad and not any(p is row for row in rows)]
    try:
        # Weight decay would shrink the rows that have no gradient.
        yield [{"params": others}, {"params": rows, "weight_decay": 0.0}]
    finally:
        for handle in handles:
            handle.remove()
    wrapper.merge_and_unload()
    reasoner.requires_grad_(True)


def _train_rows(model: PreTrainedModel, rows: Sequence[int]) -> tuple[list[nn.Parameter], list[Any]]:
    """Let only these rows of the embedding, and of an untied LM head, have gradients."""
    weights = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    handles = []
    for weight in weights.values():
        weight.requires_grad_(True)

        def only(gradient: Tensor) -> Tensor:
            kept = torch.zeros_like(gradient)
            kept[rows] = gradient[rows]
            return kept

        handles.append(weight.register_hook(only))
    return list(weights.values()), handles
