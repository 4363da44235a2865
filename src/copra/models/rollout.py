"""The latent rollout: which columns each forward pass reads, and how hidden states become latents.

Training, generation and the count of FLOPs all take their passes from `spans`; training and generation
run them by `rollout`. A latent is made from the hidden state of the position before it, so the passes
depend on one another (2412.06769, section 3).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The columns `start` to `stop` that one cached forward pass reads.

    The first `latents` of them are made from the hidden states of the positions before them.
    """

    start: int
    stop: int
    latents: int = 0


def spans(start: int, first_latent: int, latents: int, stop: int, iterations: int = 0) -> Iterator[Span]:
    """Yield the passes over columns `start` to `stop` of sequences with latents in `latents` columns.

    Each latent waits for the pass before it: one pass covers everything before the first latent, and the last
    latent shares its pass with all columns after it. So n latents take n+1 passes.

    With `iterations` T > 0 (at most n) all latents are read at once, T+1 times (Jacobi iterations,
    2506.18582, section 3.2): first as their token's embedding, then as made from the hidden states of the
    previous pass. The first T latents then equal those of the sequential chain.
    """
    after = first_latent + latents
    if not latents:
        yield Span(start, stop)
    elif iterations:
        yield Span(start, after)
        yield from [Span(first_latent, after, latents)] * (iterations - 1)
        yield Span(first_latent, stop, latents)
    else:
        yield Span(start, first_latent)
        for column in range(first_latent, after - 1):
            yield Span(column, column + 1, 1)
        yield Span(after - 1, stop, 1)


def rollout(
    passes: Iterable[Span], read: Callable[[Span, "list[Tensor]"], "Tensor"]
) -> "list[tuple[int, Tensor]]":
    """Run the passes in order and return the hidden states of the columns read, in pieces with their start.

    `read` computes the hidden states [B, T, d] of one span. Its second argument holds the hidden states
    [B, n, d] of the positions before the span's latents, in pieces along the columns.
    """
    pieces: list[tuple[int, Tensor]] = []
    for span in passes:
        hidden = read(span, _columns(pieces, span.start - 1, span.start - 1 + span.latents))
        while pieces and pieces[-1][0] >= span.start:
            pieces.pop()
        if pieces:
            first, states = pieces[-1]
            if first + states.shape[1] > span.start:
                pieces[-1] = (first, states[:, : span.start - first])
        pieces.append((span.start, hidden))
    return pieces


def _columns(pieces: "Sequence[tuple[int, Tensor]]", start: int, stop: int) -> "list[Tensor]":
    """Return the hidden states of columns `start` to `stop`, in pieces. Only the last pieces are visited."""
    found = []
    for first, states in reversed(pieces):
        low, high = max(start - first, 0), min(stop - first, states.shape[1])
        if low < high:
            found.append(states[:, low:high])
        if first <= start:
            break
    return found[::-1]
