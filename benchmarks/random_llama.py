"""Save a model of exactly Llama 3.2 1B's shape with random weights, to measure time and memory offline.

    python benchmarks/random_llama.py --text train.jsonl --output models/random-llama-3.2-1b

Its tokenizer is a byte-level BPE trained on the given text: Llama's own is gated.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from copra.models.settings import FromScratch
from copra.models.tokens import train_tokenizer
from copra.tasks.task import Row

# https://huggingface.co/meta-llama/Llama-3.2-1B, config.json
LLAMA_3_2_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with question and answer")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    options = parser.parse_args()

    records = [json.loads(line) for line in options.text.read_text().splitlines()]
    rows = [Row(record["question"], (), record["answer"]) for record in records]
    spec = FromScratch(
        hidden_size=2048, layers=16, heads=32, ffn_size=8192, tokenizer="bpe", vocabulary=16384
    )
    tokenizer = train_tokenizer(spec, rows)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(
        LlamaConfig(
            **LLAMA_3_2_1B,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
