"""int8 weights in the decoder layers, by torchao: one byte per weight and one scale per output channel.

A row w of a linear layer's matrix is stored as integers q from -128 to 127 and a scale s of float32, the
largest |w| divided by 127.5, so that s q is within half a step s of w. Activations stay in the model's own
type: torchao multiplies them by q and then by s. The embedding, the LM head (whose weights may be the
embedding's), norms and biases stay as they are.

transformers saves q and s as plain tensors in model.safetensors and describes them in config.json; it
rebuilds the layers from these in any process that has torchao.
"""

import copy
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig
from transformers.utils.import_utils import is_torchao_available

from copra.data.batch import Batch
from copra.data.sequences import IGNORED
from copra.models.anatomy import blocks
from copra.models.portable import unmarked_config
from copra.utils.errors import CopraError

TORCHAO = "0.18.0"
"""The minimum version of torchao that the checkpoints are known to work with."""


def need_torchao() -> None:
    """Check that torchao is installed.

    Raises:
        CopraError: torchao is missing or too old.
    """
    if not is_torchao_available(TORCHAO):
        raise CopraError(
            f"int8 weights need torchao {TORCHAO} or newer, which is not installed here: run `pip install "
            f"torchao=={TORCHAO}`, or leave the quantize step out of the recipe."
        )


def quantize(folder: Path) -> PreTrainedModel:
    """Return the model in a checkpoint's folder with int8 weights, computing in float32, on the CPU.

    bfloat16 weights are converted to float32 first, since torchao computes scales in the weights' type.

    Raises:
        CopraError: torchao is missing, or the decoder layers have no linear layers.
    """
    need_torchao()
    from torchao.quantization import Int8WeightOnlyConfig

    # Otherwise torchao sets the precision of all float32 products of this process.
    weights = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=unmarked_config(folder),
        dtype=torch.float32,
        use_safetensors=True,
        quantization_config=weights,
    )
    if not any(isinstance(module, nn.Linear) for module in blocks(model).modules()):
        raise CopraError(
            f"{folder}: a model of type {model.config.model_type} cannot have int8 weights, since torchao "
            "quantizes linear layers and its layers are made of transformers' Conv1D. Leave the quantize "
            "step out, or take a base of another family."
        )
    return model.eval()


def sort_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors file's quantized tensors in place.

    safetensors writes them in random order, and equal runs must write equal files.
    """
    with open(file, "r+b") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        handle.seek(8)
        handle.write(text.ljust(size))


def unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same sizes with plain, random weights.

    Extra modules are created from it before their own weights are loaded.
    """
    config = copy.deepcopy(model.config)
    del config.quantization_config
    made = type(model)(config)
    made.to(model.device, model.dtype)  # type: ignore[arg-type]  # transformers wraps `to`, which hides that it is a method
    return made


@torch.no_grad()
def compare(before: PreTrainedModel, after: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, float]:
    """Measure the effect of quantization.

    Return the largest absolute difference of two logits over all tokens except padding, and the mean loss at
    the labels in nats per token, before and after. Both models must be on one device.

    Raises:
        CopraError: a logit is not a finite number.
    """
    largest, losses, labels = 0.0, [0.0, 0.0], 0
    for tokens, targets in _rows(batches):
        given = tokens[None].to(before.device)
        logits = [model(input_ids=given, use_cache=False).logits[0] for model in (before, after)]
        difference = float((logits[1] - logits[0]).abs().max())
        if not math.isfinite(difference):
            raise CopraError(
                "quantize: a logit is not a finite number, before or after quantizing, so the model is not "
                "saved. Look at the training before this step."
            )
        largest = max(largest, difference)
        labels += int((targets[1:] != IGNORED).sum())
        for side, each in enumerate(logits):
            losses[side] += float(_summed_loss(each, targets.to(before.device)))
    return {
        "largest_logit_difference": largest,
        "loss_before": losses[0] / labels,
        "loss_after": losses[1] / labels,
    }


def _rows(batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the tokens and labels [T] of each row, without padding.

    The logits of two models for a whole batch would take gigabytes with a vocabulary of 128,000.
    """
    for batch in batches:
        for tokens, labels, mask in zip(batch.tokens, batch.labels, batch.mask.bool(), strict=True):
            yield tokens[mask], labels[mask]


def _summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the next-token cross-entropy [] of logits [T, V], summed over the labels [T]."""
    return functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
