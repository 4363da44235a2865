"""Training, decoding and memory on a GPU, with random weights: how near to what the device can do.

    python benchmarks/gpu.py [training] [decoding] [nan] [profile] [--size 1b] [--set num_hidden_layers=8 ...]

Prints Markdown. Without names it measures training and decoding. MFU is the FLOPs of a step (of real tokens,
without padding) over its seconds and over the FLOPs per second of a matrix product in bfloat16 (on a CPU:
float32), measured here. The floor of a token is the time in which all weights are read once at the speed of
a copy. `nan` counts micro-batches whose gradient is not finite, by attention kernel; `profile` lists the
operations of one Coconut micro-batch. Runs on a CPU too: `--size tiny` tries it.
"""

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState
from measuring import (
    TimeModel,
    copy_speed,
    draw_rows,
    heading,
    line,
    matrix_product_speed,
    peak_memory,
    seconds,
)
from sizes import SIZES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM

from copra.cost.flops import of_training_work
from copra.data.batch import collate, width_multiple
from copra.data.sequences import GenerationSpec, Markers
from copra.evaluation.latency import device_name
from copra.generation.compiled import Compiled, positions
from copra.generation.decode import decode
from copra.methods import METHODS
from copra.methods.reasoning_model import ReasoningModel
from copra.models.checkpoint import device
from copra.models.shape import shape_of
from copra.schema.settings import Precision
from copra.training.loop import Trainer

WARMING_STEPS = 2
LATENTS = 6
# Name in the table: kind of step, its stage, and settings.
METHODS_MEASURED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "cot": ("cot", 0, {}),
    "no_cot": ("no_cot", 0, {}),
    f"coconut, {LATENTS} latents": ("coconut", 3, {"latents_per_step": LATENTS // 3}),
}
PARTS = ("training", "decoding", "nan", "profile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other sizes (LlamaConfig)")
    on_gpu = device().type == "cuda"
    types = ["float32", "bfloat16"] if on_gpu else ["float32"]
    parser.add_argument("--precisions", nargs="*", default=types[-1:], help="of training")
    parser.add_argument("--batch-size", type=int, default=128, help="rows per optimizer step")
    parser.add_argument("--micro-batch-size", type=int, help="rows per forward pass (default: all)")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps, the first two unmeasured")
    parser.add_argument("--dtypes", nargs="*", default=types, help="of the weights in decoding")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64, 512], help="rows in decoding")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer in decoding")
    parser.add_argument("--forms", nargs="*", default=["growing", "compiled"], help="caches in decoding")
    parser.add_argument("--backend", default="inductor", help="torch.compile's")
    parser.add_argument("--rows", type=int, default=640, help="rows that `nan` reads")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    torch.manual_seed(0)
    sizes = SIZES[options.size] | {
        key: json.loads(value) for key, value in (s.split("=") for s in options.set)
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    model.to(device())  # type: ignore[arg-type]  # transformers wraps `to`, which hides that it is a method
    peak, bandwidth = matrix_product_speed(), copy_speed()
    print(f"`python {shlex.join(sys.argv)}`\n")
    print(
        f"{device_name(device())}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; matrix product {peak / 1e12:.3g} "
        f"TFLOP/s, copy {bandwidth / 1e12:.3g} TB/s (read and written)"
    )
    bench = Bench(model, options, peak, bandwidth)
    for part in options.parts or PARTS[:2]:
        print()
        getattr(bench, part)()


class Bench:
    """The measurements of one model, each of which prints a table."""

    def __init__(self, model: LlamaForCausalLM, options: argparse.Namespace, peak: float, bandwidth: float):
        self.model, self.options, self.peak, self.bandwidth = model, options, peak, bandwidth
        vocabulary = model.config.vocab_size
        self.markers = Markers(vocabulary - 3, vocabulary - 2, vocabulary - 1)
        longest = max(options.batch_size * options.steps, options.rows, *options.batches)
        self.rows = draw_rows(longest, vocabulary - 3, Random(0))

    def training(self) -> None:
        """Seconds of an optimizer step by method, as a training job takes them."""
        heading("method", "precision", "ms per step", "samples/s", "TFLOP/s", "MFU (%)", "peak GiB")
        for precision in self.options.precisions:
            for name in METHODS_MEASURED:
                seconds, flops, memory = self._train(name, precision)
                rate = flops / seconds
                samples = self.options.batch_size / seconds
                mfu = 100 * rate / self.peak
                line(name, precision, 1000 * seconds, samples, rate / 1e12, mfu, memory)

    def _train(self, name: str, precision: Precision) -> tuple[float, float, float | None]:
        """Seconds and FLOPs of a step, and the peak of memory in GiB."""
        kind, number, settings = METHODS_MEASURED[name]
        training = {
            "steps": self.options.steps,
            "batch_size": self.options.batch_size,
            "select_best_by": "last",
        }
        training |= {"num_validations": 1, "micro_batch_size": self.options.micro_batch_size}
        method = METHODS[kind].model_validate({"kind": kind, "training": training, **settings})
        # accelerate keeps the precision of the first training for the whole process.
        AcceleratorState._reset_state(True)
        clock = TimeModel(WARMING_STEPS, self.options.steps - 1)
        with tempfile.TemporaryDirectory() as folder, peak_memory() as memory:
            record = Trainer(
                model=self.model,
                stage=method.resolved_stages()[number],
                training=method.training_of(number),
                rows=self.rows,
                validation=self.rows[:1],
                markers=self.markers,
                pad=0,
                seed=0,
                state=Path(folder),
                accuracy=lambda: 0.0,
                precision=precision,
                tracker=clock,  # type: ignore[arg-type]  # a training only calls `log`
            ).run()
        self.model.zero_grad()
        flops = of_training_work(shape_of(self.model.config.to_dict()), record["work"], 0, None)
        return clock.seconds / (clock.last - clock.first), flops / record["steps"], memory()

    def decoding(self) -> None:
        """Milliseconds of a prompt and of a token that follows it, by type, cache and batch."""
        heading(
            "weights",
            "cache",
            "thought",
            "batch",
            "prompt ms",
            "token ms",
            "times the floor",
            "answers/s",
            "peak GiB",
        )
        latents = GenerationSpec(
            (self.markers.start,), LATENTS, "hidden", self.markers.latent, (self.markers.end,)
        )
        for dtype in self.options.dtypes:
            self.model.to(getattr(torch, dtype))
            floor = sum(p.nbytes for p in self.model.parameters()) / (self.bandwidth / 2)
            for form in self.options.forms:
                for batch in self.options.batches:
                    for thought, decoding in (("none", None), (f"{LATENTS} latents", latents)):
                        with peak_memory() as memory:
                            prompt, whole = self._decode(form, batch, decoding)
                        token = (whole - prompt) / (self.options.tokens - 1)
                        line(
                            dtype,
                            form,
                            thought,
                            batch,
                            1000 * prompt,
                            1000 * token,
                            token / floor,
                            batch / whole,
                            memory(),
                        )
        self.model.float()

    def _decode(self, form: str, batch: int, decoding: GenerationSpec | None) -> tuple[float, float]:
        """Seconds up to the first token of a batch, and up to the last."""
        prompts = [row.question for row in self.rows[:batch]]
        compiled = None
        if form == "compiled":
            length = positions(prompts, decoding, (), self.options.tokens)
            compiled = Compiled(self.model, batch, length, self.options.backend)

        def answer(tokens: int) -> Callable[[], Any]:
            return partial(
                decode,
                self.model,
                prompts,
                decoding,
                stop=0,
                pad=0,
                max_new_tokens=tokens,
                batch_size=batch,
                force_length=True,
                compiled=compiled,
            )

        return seconds(answer(1)), seconds(answer(self.options.tokens))

    def nan(self) -> None:
        """Micro-batches of Coconut whose gradient is not finite, by attention kernel and rows."""
        heading("kernel", "rows per pass", "passes", "not finite", "first of them (rows x columns)")
        kernels: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
            "PyTorch's choice": contextlib.nullcontext
        }
        for name in ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
            kernels[name.lower()] = partial(sdpa_kernel, getattr(SDPBackend, name))
        sizes = sorted({max(self.options.batch_size // 4, 1), self.options.batch_size})
        for name, kernel in kernels.items():
            for size in sizes:
                parts = self._micro_batches(size)
                try:
                    with kernel():
                        broken = [shape for shape, norm in map(self._gradient, parts) if not norm < torch.inf]
                except RuntimeError as error:
                    line(name, size, len(parts), "-", str(error).split("\n")[0])
                    continue
                finally:
                    self.model.zero_grad()
                line(name, size, len(parts), len(broken), "x".join(map(str, broken[0])) if broken else "")

    def profile(self) -> None:
        """Operations of a forward and backward pass of Coconut, the longest first."""
        (part,) = self._micro_batches(self.options.batch_size)[:1]
        self._gradient(part)
        with profile() as found:
            began = time.perf_counter()
            self._gradient(part)
            wall = time.perf_counter() - began
        events = found.key_averages()
        on = "self_device_time_total" if device().type == "cuda" else "self_cpu_time_total"
        busy = sum(getattr(event, on) for event in events) / 1e6
        print(f"{1000 * wall:.1f} ms under the profiler, in which the device worked {1000 * busy:.1f} ms\n")
        heading("operation", "calls", "ms")
        for event in sorted(events, key=lambda event: -getattr(event, on))[:20]:
            line(f"`{event.key[:70]}`", event.count, getattr(event, on) / 1000)

    def _micro_batches(self, size: int) -> list[list[Any]]:
        stage = self._coconut()
        samples = [stage.lay_out(row, self.markers, None) for row in self.rows[: self.options.rows]]
        samples.sort(key=lambda sample: len(sample.tokens))
        return [samples[first : first + size] for first in range(0, len(samples), size)]

    def _coconut(self) -> Any:
        kind, number, settings = METHODS_MEASURED[f"coconut, {LATENTS} latents"]
        training = {"training": {"steps": 1}}
        return METHODS[kind].model_validate({"kind": kind, **training, **settings}).resolved_stages()[number]

    def _gradient(self, samples: Sequence[Any]) -> tuple[tuple[int, ...], float]:
        """The shape [B, N] of a micro-batch, and the norm of its gradient."""
        self.model.zero_grad()
        batch = collate(samples, 0, multiple=width_multiple(device())).to(device())
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=device().type == "cuda"):
            total, count = self._coconut().loss(ReasoningModel(self.model), batch)["cross_entropy"]
        (total / count).backward()
        gradients = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        return tuple(batch.tokens.shape), float(torch.stack(gradients).norm())


if __name__ == "__main__":
    main()
