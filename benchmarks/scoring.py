"""Seconds and memory of the scoring run `passes` on a model of Llama 3.2 1B's shape with random weights.

    python benchmarks/scoring.py --data /path/to/gsm8k [--rows 32] [--batch-size 8] [--threads 1] [--size 1b]

The folder holds GSM8K's train.jsonl and test.jsonl. Weights are in float32.
"""

import argparse
import resource
import time
from itertools import islice
from pathlib import Path

import torch
from random_llama import text_tokenizer
from sizes import SIZES
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from copra.data.tokenization import train_tokenizer
from copra.pruning.scoring.calibration import calibration_batches
from copra.pruning.scoring.passes import pass_scores
from copra.tasks.gsm8k import Gsm8k
from copra.tasks.task import Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="1b")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    files = {split: str(options.data / f"{split}.jsonl") for split in ("train", "test")}
    rows = [row for _, row in islice(Gsm8k(source="files", **files).rows(), 3000) if isinstance(row, Row)]
    tokenizer = train_tokenizer(text_tokenizer(SIZES[options.size]), rows)
    batches = list(calibration_batches(tokenizer, rows[: options.rows], "cot", options.batch_size, None))
    model = LlamaForCausalLM(LlamaConfig(**SIZES[options.size], bos_token_id=None, eos_token_id=None))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    print(f"{sum(int(batch.mask.sum()) for batch in batches):,} tokens in {options.rows} rows", flush=True)
    print(f"{_peak():.1f} GiB before", flush=True)

    wall, processor = time.perf_counter(), time.process_time()
    scores = pass_scores(model, nn.ModuleDict(), batches, None)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{len(scores):,} scores in {wall:.0f} s ({processor:.0f} s of CPU), {_peak():.1f} GiB at most")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
