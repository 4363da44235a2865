import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.models.shape import ModelShape
from copra.pruning.budget import Prune
from copra.pruning.plan import make_plan

TOKENS = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None}


@pytest.fixture
def llama():
    """Makes a tiny Llama with random weights that are large enough to tell layers and heads apart."""

    def make(heads: int = 4, kv_heads: int = 2, layers: int = 3, **changes) -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 40, "head_dim": 8, "initializer_range": 0.1}
        config = LlamaConfig(
            **{**sizes, **TOKENS, **changes},
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=layers,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32, "initializer_range": 0.1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **TOKENS)).eval()


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
