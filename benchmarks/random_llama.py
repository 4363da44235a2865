"""Save a model of exactly Llama 3.2 1B's shape with random weights, to measure time and memory offline.

    python benchmarks/random_llama.py --text train.jsonl --output models/random-llama-3.2-1b [--size 1b]

Its tokenizer is a byte-level BPE trained on the given text: Llama's own is gated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from sizes import SIZES
from transformers import AutoModelForCausalLM, LlamaConfig

from copra.data.tokenization import train_tokenizer
from copra.schema.base import FromScratch
from copra.tasks.task import Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with question and answer")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--size", choices=SIZES, default="1b")
    options = parser.parse_args()

    records = [json.loads(line) for line in options.text.read_text().splitlines()]
    rows = [Row(record["question"], (), record["answer"]) for record in records]
    shape = SIZES[options.size]
    tokenizer = train_tokenizer(text_tokenizer(shape), rows)
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


def text_tokenizer(shape: dict[str, Any]) -> FromScratch:
    """Settings of a byte-level BPE tokenizer with at most 16,384 tokens, or as many as the model has."""
    return FromScratch(
        hidden_size=shape["hidden_size"],
        layers=shape["num_hidden_layers"],
        heads=shape["num_attention_heads"],
        intermediate_size=shape["intermediate_size"],
        tokenizer="bpe",
        vocabulary=min(16384, shape["vocab_size"]),
    )


if __name__ == "__main__":
    main()
