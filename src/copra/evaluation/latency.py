"""Measured seconds per answer: several models in one run on one device."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import Cache

from copra.generation.answering import GenerationOptions, generate
from copra.generation.compiled import Compiled, positions
from copra.generation.prompts import Prompts, prompts_of
from copra.generation.session import read_prefix
from copra.models.checkpoint import Checkpoint
from copra.tasks.task import Row


def measure(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    forced_tokens: int,
    batch_size: int,
    questions: int,
    repetitions: int,
    compile: bool = False,
) -> list[dict[str, Any]]:
    """Return median seconds per answer at batch 1 and in a full batch, at natural and at forced length.

    One unmeasured run warms up; the device is synchronized around every run. Forced length makes the
    comparison independent of what a model answers: every model writes the same number of tokens. If worked
    examples precede all questions, each row comes twice, by `prompt`: "whole", the examples read anew with
    each question, and "cached", read before and not measured, as FLOPs are counted. `dtype` is the type of
    the decoder layers' weights. With `compile` the pass over one token is compiled, once per batch size,
    before the measured runs.
    """
    decoding = checkpoint.decoding
    assert decoding is not None, "only models that were trained or prompted to answer are timed"
    max_new_tokens = decoding.longest_answer(max_new_tokens)
    asked = prompts_of(checkpoint.tokenizer, rows, decoding)
    whole = [[*asked.prefix, *prompt] for prompt in asked.prompts]
    ways: dict[str, tuple[Prompts, Cache | None]] = {"whole": (Prompts((), whole, asked.ends), None)}
    if asked.prefix:
        with torch.inference_mode():
            ways["cached"] = (asked, read_prefix(checkpoint.model, asked.prefix))
    table = []
    for batch, number in ((1, questions), (batch_size, batch_size)):
        compiled = None
        if compile:
            longest = positions(whole[:number], decoding, (), max(max_new_tokens, forced_tokens))
            compiled = Compiled(checkpoint.model, min(batch, len(whole)), longest)
        for (prompt, (prompts, prefix_cache)), (length, limit) in itertools.product(
            ways.items(), (("natural", max_new_tokens), ("forced", forced_tokens))
        ):
            first = replace(prompts, prompts=prompts.prompts[:number])
            answer = partial(
                generate,
                checkpoint,
                first,
                decoding,
                GenerationOptions(limit, batch, force_length=length == "forced"),
                prefix_cache=prefix_cache,
                compiled=compiled,
            )
            answers = len(first.prompts)
            table.append(
                {
                    "node": checkpoint.manifest.node,
                    "device": device_name(checkpoint.model.device),
                    "dtype": weights_type(checkpoint),
                    "precision": checkpoint.precision,
                    "batch": answers if batch > 1 else 1,
                    "prompt": prompt,
                    "length": length,
                    "compiled": compile,
                    "seconds_per_answer": _median_seconds(answer, repetitions) / answers,
                    "answers": answers,
                    "repetitions": repetitions,
                }
            )
    return table


def weights_type(checkpoint: Checkpoint) -> str:
    """Return the type of the decoder layers' weights, such as "bfloat16", or "int8" if they are quantized."""
    return checkpoint.manifest.quantized or str(checkpoint.model.dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def _median_seconds(work: Callable[[], Any], repetitions: int) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(repetitions))


def _seconds(work: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
