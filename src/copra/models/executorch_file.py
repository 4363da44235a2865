"""Checkpoints as programs of ExecuTorch, for phones: a folder with the model, its tokenizer and its decoding.

The program has two methods: `embed`, from token ids [T] to embeddings [1, T, d], and `step`, from embeddings
[1, T, d] at positions [T] to the last one's hidden state [1, d] after the final norm and its logits [1, V]. T
is 1 up to the maximum length. Keys and values stay in the program, at their positions.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from copra.data.tokenization import beginning
from copra.models.checkpoint import Checkpoint
from copra.models.exported import check_family, decoding_of
from copra.models.logits import read_logits
from copra.models.quantized import need_torchao
from copra.models.shape import shape_of
from copra.schema.conversion import FAMILIES, PACKAGES
from copra.utils.errors import CopraError
from copra.utils.files import replacing, write_json

WeightKind = Literal["f32", "int8"]
PROGRAM = "model.pte"
DECODING = "decoding.json"
"""File of what a caller needs to know: see `description`."""
ATTENTION = "copra_grouped"
"""The name under which transformers finds `grouped_attention`."""


def need_executorch() -> None:
    """Check that ExecuTorch is installed.

    Raises:
        CopraError: it is missing.
    """
    if importlib.util.find_spec("executorch") is None:
        raise CopraError(
            "programs for ExecuTorch need the package executorch. Run pip install "
            f"{PACKAGES['executorch']['executorch']}."
        )


def write_executorch(
    checkpoint: Checkpoint, folder: Path, kind: WeightKind = "f32", max_length: int | None = None
) -> None:
    """Write a folder with a program for ExecuTorch, tokenizer and decoding, complete or absent.

    `max_length` is the number of positions in the cache, see `positions_of`. "int8": the matrices of linear
    layers and the LM head are stored in 8 bits with a scale per row, and their inputs are rounded to 8 bits
    with a scale per position as the program runs. The embedding keeps single precision.

    Raises:
        CopraError: executorch is missing, the model or its decoding has no form in ExecuTorch, or the model
            has fewer positions than `max_length`.
    """
    need_executorch()
    about = description(checkpoint, kind, max_length)
    model = copy.deepcopy(checkpoint.model).cpu().float().eval()
    if kind == "int8":
        _quantize(model)
    with replacing(folder) as temporary:
        temporary.mkdir()
        checkpoint.tokenizer.save_pretrained(temporary)
        write_json(temporary / DECODING, about)
        with open(temporary / PROGRAM, "wb") as file:
            _program(model, about["max_length"]).write_to_file(file)


def description(checkpoint: Checkpoint, kind: WeightKind, max_length: int | None) -> dict[str, Any]:
    """Return what a caller of the program needs to know, as plain JSON values.

    They are those of `decoding_of`, `start_ids` (the tokens before a question), `end_ids` (those that end an
    answer), `max_length`, the `type` of the weights, and the name of the model, `node`.

    Raises:
        CopraError: as `write_executorch` does.
    """
    check_family(checkpoint, "ExecuTorch", FAMILIES["executorch"])
    if kind == "int8" and checkpoint.manifest.shape.family == "gpt2":
        raise CopraError(
            f"{checkpoint.manifest.node}: --type int8 needs linear layers, and those of GPT-2 are "
            "transformers' Conv1D. Use --type f32."
        )
    return {
        "node": checkpoint.manifest.node,
        "type": kind,
        "max_length": positions_of(checkpoint, max_length),
        "start_ids": beginning(checkpoint.tokenizer),
        "end_ids": [checkpoint.tokenizer.eos_token_id],
        **decoding_of(checkpoint, "ExecuTorch"),
    }


def positions_of(checkpoint: Checkpoint, max_length: int | None) -> int:
    """Return the number of positions in a program's cache: `max_length`, or 512 if the model has as many.

    Raises:
        CopraError: the model has fewer positions than `max_length`, or this is less than 2.
    """
    node, most = checkpoint.manifest.node, checkpoint.model.config.max_position_embeddings
    if max_length is None:
        return min(512, most)
    if not 2 <= max_length <= most:
        raise CopraError(f"--max-length {max_length}: must be from 2 to {most}, the positions of {node}.")
    return max_length


class Embed(nn.Module):
    """The method `embed`: from token ids [T] to embeddings [1, T, d]."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.embedding = model.get_input_embeddings()

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)[None]


class Step(nn.Module):
    """The method `step`: a pass over embeddings [1, T, d] at positions [T], which attends to those before.

    It returns the last position's hidden state [1, d] after the final norm, and its logits [1, V].
    """

    def __init__(self, model: PreTrainedModel, length: int):
        super().__init__()
        self.model = model
        self.length = length
        layers = shape_of(model.config.to_dict()).layers
        self.n_layers = len(layers)
        for index, layer in enumerate(layers):
            for kind in ("keys", "values"):
                room = torch.zeros(1, layer.kv_heads, length, layer.head_dim)
                self.register_buffer(f"{kind}_{index}", room, persistent=False)

    def forward(self, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cache = Cache(
            layers=[
                PlacedLayer(self.get_buffer(f"keys_{index}"), self.get_buffer(f"values_{index}"), positions)
                for index in range(self.n_layers)
            ]
        )
        is_seen = torch.arange(self.length) <= positions[:, None]
        hidden = self.model.base_model(
            inputs_embeds=embeddings,
            attention_mask=torch.where(is_seen, 0.0, -torch.inf)[None, None],
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return hidden, read_logits(self.model, hidden)


class PlacedLayer(StaticLayer):
    """A layer of a cache in tensors [1, K, N, D] of others, which is written at given positions [T]."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor):
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self.positions, key_states)
        self.values.index_copy_(2, self.positions, value_states)
        return self.keys, self.values


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention [1, T, H, D] of queries [1, H, T, D] over keys and values [1, K, N, D].

    The H/K heads of a group are read as one long head. transformers' own functions copy keys and values for
    each head, on a phone all positions of the cache for each token. The mask [1, 1, T, N] is added.
    """
    _, heads, length, width = query.shape
    groups = key.shape[1]
    each = heads // groups
    scores = query.reshape(1, groups, each * length, width) @ key.transpose(2, 3) * scaling
    weights = (scores + attention_mask.repeat(1, 1, each, 1)).softmax(-1)
    found = (weights @ value).unflatten(2, (each, length)).flatten(1, 2)
    return found.transpose(1, 2), None


def _quantize(model: PreTrainedModel) -> None:
    """Convert a model's linear layers and LM head to 8 bits in place.

    Raises:
        CopraError: torchao is missing.
    """
    need_torchao()
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, quantize_

    rows = PerAxis(0)
    quantize_(model, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=rows))


@torch.no_grad()
def _program(model: PreTrainedModel, length: int) -> Any:
    """Return the program of a model with a cache of `length` positions."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    AttentionInterface.register(ATTENTION, grouped_attention)
    model.set_attn_implementation(ATTENTION)
    number = torch.export.Dim("number", min=1, max=length)
    ids = torch.arange(2)
    embed = torch.export.export(Embed(model), (ids,), dynamic_shapes=({0: number},))
    inputs = (torch.zeros(1, 2, model.config.hidden_size), ids)
    step = torch.export.export(Step(model, length), inputs, dynamic_shapes=({1: number}, {0: number}))
    lowered = to_edge_transform_and_lower(
        {"embed": embed, "step": step}, partitioner={"embed": [], "step": [XnnpackPartitioner()]}
    )
    return lowered.to_executorch()
