import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.models.per_layer import CopraLlamaConfig, CopraLlamaForCausalLM
from copra.models.shape import shape_of
from copra.pruning.cut import KeptUnits
from copra.pruning.plan import make_plan
from copra.schema.pruning import Prune
from copra.schema.shape import ModelShape

TOKENS = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None}


@pytest.fixture
def llama():
    """Makes a tiny Llama with random weights that are large enough to tell layers and heads apart.

    Heads that do not divide the width of 32 make it one of copra's own class.
    """

    def make(heads: int = 4, kv_heads: int = 2, layers: int = 3, **changes) -> LlamaForCausalLM:
        torch.manual_seed(0)
        plain = 32 % heads == 0
        config_class = LlamaConfig if plain else CopraLlamaConfig
        sizes = {"hidden_size": 32, "intermediate_size": 40, "head_dim": 8, "initializer_range": 0.1}
        config = config_class(
            **{**sizes, **TOKENS, **changes},
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=layers,
        )
        return shaken(LlamaForCausalLM(config) if plain else CopraLlamaForCausalLM(config)).eval()

    return make


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32, "initializer_range": 0.1}
    return shaken(GPT2LMHeadModel(GPT2Config(**sizes, **TOKENS))).eval()


@torch.no_grad()
def shaken(model):
    """The model with random biases, which are 0 from scratch: a bias that is cut wrongly is then felt."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def keep():
    """Makes a cut of a model from lists of what stays; None in place of a list keeps all."""

    def make(model, layers=None, groups=None, heads=None, neurons=None) -> KeptUnits:
        shapes = shape_of(model.config.to_dict()).layers
        if groups is not None:
            sizes = [shape.query_heads // shape.kv_heads for shape in shapes]
            heads = [
                kept and [group * size + head for group in kept for head in range(size)]
                for kept, size in zip(groups, sizes, strict=True)
            ]
        everything = [None] * len(shapes)
        layers = list(range(len(shapes))) if layers is None else layers
        return KeptUnits.from_json(
            {"layers": layers, "heads": heads or everything, "neurons": neurons or everything}
        )

    return make


@pytest.fixture
def plan_of():
    """Makes the plan of a cut of a model, with as much of a record as surgery reads from the file."""

    def make(model, cut: KeptUnits):
        shape = shape_of(model.config.to_dict())
        return json.loads(json.dumps({"kept": cut.to_json(), "shape_before": shape.to_json()}))

    return make


@pytest.fixture
def inputs():
    """Three sequences of 11, 7 and 4 tokens, padded on the right."""
    input_ids = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(2))
    attention_mask = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.fixture
def count_weights():
    """The weights in the layers of a shape, which stand for the FLOPs of an answer."""

    def count(shape: ModelShape) -> int:
        return sum(
            2 * shape.hidden * layer.head_dim * (layer.query_heads + layer.kv_heads)
            + shape.ffn_matrices * shape.hidden * layer.ffn
            for layer in shape.layers
        )

    return count


@pytest.fixture
def plan_for(count_weights):
    """Makes a plan for a shape from settings without their kind."""

    def make(shape: ModelShape, scores=None, dense=None, seed=0, **settings):
        return make_plan(Prune(kind="prune", **settings), shape, dense or shape, scores, count_weights, seed)

    return make
