"""A little tokenizer without markers, and little models for it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from copra.data.tokenization import train_tokenizer
from copra.schema.base import FromScratch

SIZES = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 48}


def tokenizer_for(rows, **changes):
    """A tokenizer without markers."""
    return train_tokenizer(FromScratch(**{**SIZES, "tokenizer": "bpe", "vocabulary": 300, **changes}), rows)


def model_for(tokenizer, architecture: str = "llama", tied: bool = True, extra: int = 0):
    torch.manual_seed(0)
    shared = {"vocab_size": len(tokenizer) + extra, "tie_word_embeddings": tied, "eos_token_id": 1}
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shared, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(**shared, **sizes))
