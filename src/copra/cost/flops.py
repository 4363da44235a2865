"""FLOPs of one answer, by formula from the sizes of the model and the real token counts (no torch).

A multiply-add is 2 FLOPs. One pass of T new tokens over P cached ones costs, in a layer with H query
heads, K key/value heads of size D, FFN width I and m FFN matrices, at hidden width d:

    2 T d D (2H + 2K)   projections of attention
    4 T (P + T) H D     scores and their product with the values
    2 T m d I           FFN

and 2 T' d V in the LM head for the T' positions whose logits are read. The embedding look-up costs
nothing; norms, rotary embedding, softmax and activations (under 1%) are left out, and the causal half of
the scores is not subtracted. `torch.utils.flop_counter.FlopCounterMode` counts the same on the meta
device, which the tests hold to the last FLOP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from copra.models.shape import ModelShape
from copra.reasoning.layout import Decoding

Phase = Literal["prefill", "latent", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "latent", "decode")
PARTS = ("attention", "ffn", "head")


@dataclass(frozen=True)
class Pass:
    """One forward pass: `new` tokens over `past` cached ones, the LM head at `logits` positions."""

    phase: Phase
    new: int
    past: int
    logits: int


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


def passes(decoding: Decoding | None, prompt: int, generated: int) -> Iterator[Pass]:
    """The passes of one greedy answer of `generated` tokens (at least 1) after `prompt` tokens.

    The prompt and the tokens before the latents go in one pass, which needs no logits where latents
    follow; each latent needs a pass, and the last one takes the tokens after the latents along; every
    generated token but the last one is fed back. Latents that are a learned embedding belong to the
    prefill.
    """
    before, latents, after, loops = 0, 0, 0, False
    if decoding is not None:
        before, latents, after = len(decoding.before), decoding.latents, len(decoding.after)
        loops = decoding.loops
    if loops:
        past = prompt + before
        yield Pass("prefill", past, 0, 0)
        for _ in range(latents - 1):
            yield Pass("latent", 1, past, 0)
            past += 1
        yield Pass("latent", 1 + after, past, 1)
        past += 1 + after
    else:
        past = prompt + before + latents + after
        yield Pass("prefill", past, 0, 1)
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
        self.ffn = sum(2 * shape.ffn_matrices * d * each.ffn for each in layers)
        self.head = 2 * d * shape.vocabulary

    def of_pass(self, one: Pass) -> dict[str, int]:
        """FLOPs of one pass, by part."""
        return {
            "attention": one.new * self.projections + one.new * (one.past + one.new) * self.scores,
            "ffn": one.new * self.ffn,
            "head": one.logits * self.head,
        }

    def of_answer(self, decoding: Decoding | None, prompt: int, generated: int) -> AnswerFlops:
        """FLOPs of one answer."""
        by: dict[tuple[Phase, str], int] = dict.fromkeys(
            ((phase, part) for phase in PHASES for part in PARTS), 0
        )
        depth = 0
        for one in passes(decoding, prompt, generated):
            depth += 1
            for part, flops in self.of_pass(one).items():
                by[one.phase, part] += flops
        return AnswerFlops(by, depth)

    def of_training(self, tokens: int, context: int, supervised: int) -> int:
        """FLOPs of training on `tokens` tokens: forward and twice that backward.

        `context` is the sum over samples of length squared (each position is scored against the whole
        of its own row), `supervised` the positions at which the LM head is read.
        """
        forward = tokens * (self.projections + self.ffn) + context * self.scores + supervised * self.head
        return 3 * forward
