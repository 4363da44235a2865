import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.models.copra_llama import CopraLlamaConfig, CopraLlamaForCausalLM

TOKENS = {"vocab_size": 30, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"head_dim": 6, "intermediate_size": 20, "initializer_range": 0.3}
OVERRIDES = [{"num_attention_heads": 2, "num_key_value_heads": 1}, {}, {"num_key_value_heads": 1}]


@pytest.fixture(params=["llama", "copra_llama", "gpt2"])
def model(request):
    """A tiny model with weights far from the small usual ones, dropout included where it has any."""
    torch.manual_seed(3)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA, **TOKENS))
    if request.param == "copra_llama":
        return CopraLlamaForCausalLM(CopraLlamaConfig(**LLAMA, **TOKENS, layer_overrides=OVERRIDES))
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**sizes, **TOKENS))


@pytest.fixture
def examples():
    """Five token sequences of different lengths, each with the place where its labels begin."""
    generator = torch.Generator().manual_seed(5)
    lengths = ((9, 4), (5, 2), (7, 6), (9, 1), (3, 1))
    return [(torch.randint(30, (n,), generator=generator), start) for n, start in lengths]


@pytest.fixture
def batches_of(examples):
    """The examples in padded batches of a given size."""

    def collate(size: int, width: int = 0):
        for first in range(0, len(examples), size):
            group = examples[first : first + size]
            longest = max(width, *(len(tokens) for tokens, _ in group))
            batch = {
                "input_ids": torch.zeros(len(group), longest, dtype=torch.long),
                "attention_mask": torch.zeros(len(group), longest, dtype=torch.long),
                "labels": torch.full((len(group), longest), -100),
            }
            for row, (tokens, start) in enumerate(group):
                batch["input_ids"][row, : len(tokens)] = tokens
                batch["attention_mask"][row, : len(tokens)] = 1
                batch["labels"][row, start : len(tokens)] = tokens[start:]
            yield batch

    return collate
