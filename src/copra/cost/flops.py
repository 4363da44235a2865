"""FLOPs of one answer, by formula from the sizes of the model and the real token counts (no torch).

A multiply-add is 2 FLOPs. One pass of T new tokens over P cached ones costs, in a layer with H query
heads, K key/value heads of size D, FFN width I and m FFN matrices, at hidden width d:

    2 T d D (2H + 2K)   projections of attention
    4 T (P + T) H D     scores and their product with the values; with a window of W positions a layer keeps
                        the last W - 1 alone, so P is W - 1 at most
    2 T m d I           FFN

and 2 T' d V in the LM head for the T' positions whose logits are read. The embedding look-up costs
nothing; norms, rotary embedding, softmax and activations (under 1%) are left out, and the causal half of
the scores is not subtracted. `torch.utils.flop_counter.FlopCounterMode` counts the same on the meta
device, which the tests hold to the last FLOP.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from copra.models.shape import ModelShape
from copra.reasoning.layout import Decoding

Phase = Literal["prefill", "latent", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "latent", "decode")
PARTS = ("attention", "ffn", "head", "method")


@dataclass(frozen=True)
class Pass:
    """One forward pass: `new` tokens over `past` cached ones, the LM head at `logits` positions, and `fed`
    latents made from hidden states."""

    phase: Phase
    new: int
    past: int
    logits: int
    fed: int = 0


@dataclass(frozen=True)
class AnswerFlops:
    """FLOPs of one answer by phase and part, and the number of dependent passes."""

    by: dict[tuple[Phase, str], int]
    depth: int

    @property
    def total(self) -> int:
        return sum(self.by.values())

    def of(self, name: str) -> int:
        """The FLOPs of a phase or of a part."""
        return sum(flops for key, flops in self.by.items() if name in key)


def passes(decoding: Decoding | None, prompt: int, generated: int, cached: int = 0) -> Iterator[Pass]:
    """The passes of one greedy answer of `generated` tokens (at least 1) after `prompt` tokens, of which the
    first `cached` are in the cache already.

    The prompt and the tokens before the latents go in one pass, which needs no logits where latents
    follow; each latent needs a pass, and the last one takes the tokens after the latents along; every
    generated token but the last one is fed back. Latents that are a learned embedding belong to the
    prefill. Jacobi iterations read all latents with the prompt and again in every round. A thought emulator
    reads the prompt in a pass of its own, which counts as thinking.
    """
    before, latents, after, loops, rounds = 0, 0, 0, False, 0
    if decoding is not None:
        before, latents, after = len(decoding.before), decoding.latents, len(decoding.after)
        loops, rounds = decoding.loops, decoding.jacobi
    if decoding is not None and decoding.emulated:
        yield Pass("latent", prompt, 0, 0)
    if rounds:
        past = prompt + before
        yield Pass("prefill", past + latents - cached, cached, 0)
        for _ in range(rounds - 1):
            yield Pass("latent", latents, past, 0, latents)
        yield Pass("latent", latents + after, past, 1, latents)
        past += latents + after
    elif loops:
        past = prompt + before
        yield Pass("prefill", past - cached, cached, 0)
        for _ in range(latents - 1):
            yield Pass("latent", 1, past, 0, 1)
            past += 1
        yield Pass("latent", 1 + after, past, 1, 1)
        past += 1 + after
    else:
        past = prompt + before + latents + after
        yield Pass("prefill", past - cached, cached, 1)
    for _ in range(generated - 1):
        yield Pass("decode", 1, past, 1)
        past += 1


class FlopCounter:
    """Counts answers of one model shape; the sums over layers are made once."""

    def __init__(self, shape: ModelShape):
        d = shape.hidden
        layers = shape.layers
        self.projections = sum(4 * d * each.head_dim * (each.query_heads + each.kv_heads) for each in layers)
        self.scores = sum(4 * each.query_heads * each.head_dim for each in layers)
        self.windows: dict[int | None, int] = {}
        for each in layers:
            scores = self.windows.get(each.window, 0) + 4 * each.query_heads * each.head_dim
            self.windows[each.window] = scores
        self.ffn = sum(2 * shape.ffn_matrices * d * each.ffn for each in layers)
        self.head = 2 * d * shape.vocabulary
        self.projection = 4 * d * d
        self.emulation = sum(_emulation(d, below) for below in range(len(layers)))

    def of_pass(self, one: Pass) -> dict[str, int]:
        """FLOPs of one pass, by part."""
        reached = sum(
            (one.new + (one.past if window is None else min(one.past, window - 1))) * scores
            for window, scores in self.windows.items()
        )
        return {
            "attention": one.new * (self.projections + reached),
            "ffn": one.new * self.ffn,
            "head": one.logits * self.head,
        }

    def of_answer(
        self, decoding: Decoding | None, prompt: int, generated: int, cached: int = 0
    ) -> AnswerFlops:
        """FLOPs of one answer; `cached` of the prompt's tokens cost nothing any more."""
        by: dict[tuple[Phase, str], int] = dict.fromkeys(
            ((phase, part) for phase in PHASES for part in PARTS), 0
        )
        depth = 0
        projected = decoding is not None and decoding.latent_input == "projected"
        for one in passes(decoding, prompt, generated, cached):
            depth += 1
            for part, flops in self.of_pass(one).items():
                by[one.phase, part] += flops
            by[one.phase, "method"] += one.fed * self.projection if projected else 0
        if decoding is not None and decoding.emulated:
            by["latent", "method"] += self.emulation
        return AnswerFlops(by, depth)

    def of_training(self, tokens: int, context: int, supervised: int, *, learns: bool = True) -> int:
        """FLOPs of training on `tokens` tokens: forward and twice that backward (or not, in a frozen model).

        `context` is the sum over samples of length squared (each position is scored against the whole
        of its own row), `supervised` the positions at which the LM head is read.
        """
        forward = tokens * (self.projections + self.ffn) + context * self.scores + supervised * self.head
        return 3 * forward if learns else forward


def of_training_work(
    shape: ModelShape,
    work: Mapping[str, Mapping[str, float]],
    step_decoder: int = 0,
    teacher: ModelShape | None = None,
) -> float:
    """FLOPs of a training from what each reader of sequences read: its `tokens`, `context` and `supervised`
    positions, see `FlopCounter.of_training`. A step decoder has so many layers of the model's kind."""
    readers = {
        "model": shape,
        "teacher": teacher,
        "step_decoder": shape.with_layers((shape.layers * step_decoder)[:step_decoder]),
    }
    return sum(
        FlopCounter(readers[reader]).of_training(**counts, learns=reader != "teacher")
        for reader, counts in work.items()
    )


def of_typical_answer(shape: ModelShape, typical: Mapping[str, int]) -> AnswerFlops:
    """An answer in words of a model of this shape: what plans compare shapes by. `typical` are the tokens
    (prompt, generated) that a manifest calls its `typical_answer`."""
    return FlopCounter(shape).of_answer(None, typical["prompt"], typical["generated"])


def _emulation(d: int, below: int) -> int:
    """What a thought emulator computes at one layer beside its blocks, with `below` layers under it: its
    network (2d to 4d to d), LSTM cell, key, query and attention over those below, output (2d to d), and the
    student's network (d to 4d to d)."""
    attention = 2 * d * d + 4 * d * below if below else 0
    return (24 + 16 + 2 + 4 + 16) * d * d + attention
