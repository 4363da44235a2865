"""Select the weights that a stage trains: all, or low-rank adapters that are merged at the end."""

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
    """Yield the optimizer's parameter groups; on exit merge the adapters and make all weights trainable.

    `frozen` contains "model" and the names of the extra modules that are not trained.
    """
    for name, module in {"model": reasoner.model, **reasoner.extra_modules}.items():
        module.requires_grad_(name not in frozen)
    if lora is None or "model" in frozen:
        yield [{"params": [p for p in reasoner.parameters() if p.requires_grad]}]
        reasoner.requires_grad_(True)
        return
    import peft

    # The wrapper inserts its layers into the model in place, so the model itself is used from here on.
    wrapper = peft.get_peft_model(
        reasoner.model,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it only divides by the rank
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            fan_in_fan_out=family_of(reasoner.model.config.model_type).layout.transposed,
        ),
    )
    rows, handles = _train_rows(reasoner.model, sorted({markers.start, markers.latent, markers.end}))
    others = [p for p in reasoner.parameters() if p.requires_grad and not any(p is row for row in rows)]
    try:
        # Weight decay would shrink the rows without a gradient.
        yield [{"params": others}, {"params": rows, "weight_decay": 0.0}]
    finally:
        for handle in handles:
            handle.remove()
    wrapper.merge_and_unload()
    reasoner.requires_grad_(True)


def _train_rows(model: PreTrainedModel, rows: Sequence[int]) -> tuple[list[nn.Parameter], list[Any]]:
    """Restrict gradients to these rows of the embedding and of an untied LM head.

    Return the weights, and the handles of the hooks.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(weight): weight for weight in (module.get_parameter("weight") for module in modules)}
    handles = []
    for weight in weights.values():
        weight.requires_grad_(True)

        def only(gradient: Tensor) -> Tensor:
            kept = torch.zeros_like(gradient)
            kept[rows] = gradient[rows]
            return kept

        handles.append(weight.register_hook(only))
    return list(weights.values()), handles
