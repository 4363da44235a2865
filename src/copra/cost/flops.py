"""FLOPs per answer and per training, by formula from the sizes of the model and the real token counts.

A multiply-add is 2 FLOPs. One pass of T new tokens over P cached ones costs, in a layer with H query
heads, K key/value heads of size D, FFN width I and m FFN matrices, at hidden width d:

    2 T d D (2H + 2K)   projections of attention
    4 T (P + T) H D     scores and their product with the values; a layer with a window of W positions caches
                        only the last W - 1, so P is at most W - 1
    2 T m d I           FFN

and 2 T' d V in the LM head for the T' positions whose logits are read. The shape of a looped model has a
layer for each visit of a layer (`ModelShape.looped`), so that every pass counts. The embedding look-up costs
nothing; norms, rotary embedding, softmax and activations (under 1%) are left out, and the causal half of
the scores is not subtracted. `torch.utils.flop_counter.FlopCounterMode` counts the same on the meta
device, which the tests hold to the last FLOP.

In the backward pass, a product of activations and weights costs the same again for each of its two gradients,
and a product of activations twice its cost: with the forward pass, three times in all. Weights frozen under
adapters have no gradient, but their activations do: twice in all. With F FLOPs of a forward pass, training
counts

    3 F                  for trained modules, attention scores, and the LM head (with adapters too: the rows
                         of the latent markers are trained, which needs the whole gradient)
    2 F                  for projections and FFN under adapters of rank r
    6 T r (in + out)     for the adapters of a matrix
    F                    for a frozen teacher

The count leaves out the optimizer, padding, and recomputation in the backward pass. Each position counts as
scored against its whole row, though the passes before a latent attend to less of it. Networks of a method
that read single states also count three times, though a few of iCoT-KD's gradients are not needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from copra.data.sequences import GenerationSpec
from copra.models.families import family_of
from copra.models.families.family import Layout
from copra.models.rollout import spans
from copra.schema.shape import LayerShape, ModelShape

Phase = Literal["prefill", "latent", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "latent", "decode")
FLOP_GROUPS = ("attention", "ffn", "head", "method")


@dataclass(frozen=True)
class Pass:
    """One forward pass of `new` tokens over `past` cached ones.

    The LM head is applied at `logits` positions, and `fed` of the inputs are latents made from hidden states.
    """

    phase: Phase
    new: int
    past: int
    logits: int
    fed: int = 0


@dataclass(frozen=True)
class AnswerFlops:
    """FLOPs of one answer by phase and group, and the number of dependent passes.

    A pass of a looped model counts as many passes as its visits make through all layers.
    """

    by: dict[tuple[Phase, str], int]
    depth: float

    @property
    def total(self) -> int:
        return sum(self.by.values())

    def of(self, name: str) -> int:
        """Return the FLOPs of a phase or of a group."""
        return sum(flops for key, flops in self.by.items() if name in key)


def passes(decoding: GenerationSpec | None, prompt: int, generated: int, cached: int = 0) -> Iterator[Pass]:
    """Yield the passes of one greedy answer of `generated` tokens (at least 1) after `prompt` tokens.

    The first `cached` tokens of the prompt are in the cache already. The prompt and the tokens before the
    latents are one pass, which needs no logits if latents follow. Each recurrent latent is one pass, and the
    last of these includes the tokens after the latents. Every generated token but the last one is fed back.
    Latents that are a learned embedding belong to the prefill. Jacobi iterations read all latents with the
    prompt and again in every iteration. A thought emulator reads the prompt in a pass of its own, which
    belongs to the phase `latent`.
    """
    first, latents, stop, iterations = prompt, 0, prompt, 0
    if decoding is not None:
        first += len(decoding.prefix_ids)
        stop = prompt + decoding.added_tokens
        if decoding.has_recurrent_latents:
            latents, iterations = decoding.latents, decoding.jacobi_iterations
        if decoding.emulated:
            yield Pass("latent", prompt, 0, 0)
    read = list(spans(cached, first, latents, stop, iterations))
    for number, span in enumerate(read, 1):
        phase: Phase = "latent" if span.latents else "prefill"
        yield Pass(phase, span.stop - span.start, span.start, int(number == len(read)), span.latents)
    for past in range(stop, stop + generated - 1):
        yield Pass("decode", 1, past, 1)


class FlopCounter:
    """FLOP counts of one model shape; the sums over layers are computed once."""

    def __init__(self, shape: ModelShape):
        d = shape.hidden
        layers = shape.layers
        self.visits = len(layers)
        self.projections = sum(4 * d * each.head_dim * (each.query_heads + each.kv_heads) for each in layers)
        self.scores = sum(4 * each.query_heads * each.head_dim for each in layers)
        self.windows: dict[int | None, int] = {}
        for each in layers:
            scores = self.windows.get(each.window, 0) + 4 * each.query_heads * each.head_dim
            self.windows[each.window] = scores
        self.ffn = sum(2 * shape.ffn_matrices * d * each.ffn for each in layers)
        self.head = 2 * d * shape.vocabulary
        self.projection = 4 * d * d
        self.mind_reading = 16 * d * d * len(layers)
        self.emulation = sum(_emulation(d, below) for below in range(len(layers)))
        layout = family_of(shape.family).layout
        self.adapter = sum(2 * _ends(layout, d, each) for each in layers)

    def of_pass(self, one: Pass) -> dict[str, int]:
        """Return the FLOPs of one pass, by group."""
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
        self, decoding: GenerationSpec | None, prompt: int, generated: int, cached: int = 0
    ) -> AnswerFlops:
        """Return the FLOPs of one answer; the first `cached` tokens of the prompt cost nothing."""
        by: dict[tuple[Phase, str], int] = dict.fromkeys(
            ((phase, group) for phase in PHASES for group in FLOP_GROUPS), 0
        )
        depth = 0
        projected = decoding is not None and decoding.latent_input == "projected"
        for one in passes(decoding, prompt, generated, cached):
            depth += 1
            for group, flops in self.of_pass(one).items():
                by[one.phase, group] += flops
            by[one.phase, "method"] += one.fed * self.projection if projected else 0
        if decoding is not None and decoding.emulated:
            by["latent", "method"] += self.emulation + self.mind_reading
        if decoding is not None and decoding.loop is not None:
            return AnswerFlops(by, depth * decoding.loop.passes(self.visits))
        return AnswerFlops(by, depth)

    def of_training(
        self,
        tokens: float,
        context: float,
        supervised: float,
        *,
        learns: bool = True,
        lora: int | None = None,
    ) -> float:
        """Return the FLOPs of training on `tokens` tokens: forward, and backward if the model `learns`.

        `lora` is the rank of the adapters (None: all weights are trained). `context` is the sum over samples
        of length squared (each position is scored against its whole row), `supervised` the number of
        positions at which the LM head is applied.
        """
        matrices = tokens * (self.projections + self.ffn)
        rest = context * self.scores + supervised * self.head + tokens * self.adapter * (lora or 0)
        if not learns:
            return matrices + rest
        return (3 if lora is None else 2) * matrices + 3 * rest


def of_training_work(
    shape: ModelShape,
    work: Mapping[str, Mapping[str, float]],
    step_decoder: int | None = 0,
    teacher: ModelShape | None = None,
    lora: int | None = None,
    *,
    backward: bool = True,
) -> float:
    """Return the FLOPs of a training, from the workload of each reader (`copra.data.sequences.Work`).

    The workload holds `tokens`, `context` and `supervised`, see `FlopCounter.of_training`. The step decoder
    has `step_decoder` layers like the model's (None: as many as the model). Adapters have the rank `lora`
    (None: all weights are trained); modules that a method adds are trained in full. Without `backward`, count
    the forward passes alone, as in validation.
    """
    return sum(
        _of_reader(reader, counts, shape, step_decoder, teacher, lora, backward)
        for reader, counts in work.items()
    )


def _of_reader(
    reader: str,
    counts: Mapping[str, float],
    shape: ModelShape,
    step_decoder: int | None,
    teacher: ModelShape | None,
    lora: int | None,
    backward: bool,
) -> float:
    counter = FlopCounter(shape if teacher is None or not reader.startswith("teacher") else teacher)
    times, number = 3 if backward else 1, counts["tokens"]
    size = number, counts["context"], counts["supervised"]
    if reader == "model":
        return counter.of_training(*size, learns=backward, lora=lora)
    if reader == "teacher":
        return counter.of_training(*size, learns=False)
    if reader == "step_decoder":
        layers = shape.layers if step_decoder is None else (shape.layers * step_decoder)[:step_decoder]
        decoder = shape.with_layers(layers)
        return FlopCounter(decoder).of_training(*size, learns=backward)
    if reader == "emulator":
        # The output of its highest block is not used, so that block has no backward pass.
        highest = FlopCounter(shape.with_layers(shape.layers[-1:])).of_training(*size, learns=False)
        return counter.of_training(*size, learns=backward) - (2 * highest if backward else 0)
    if reader == "teacher_projection":
        return number * counter.projection
    networks = {
        "projection": counter.projection,
        "mind_reader": counter.mind_reading,
        "emulation": counter.emulation,
    }
    return times * number * networks[reader]


def of_typical_answer(shape: ModelShape, typical: Mapping[str, int]) -> AnswerFlops:
    """Return the FLOPs of an answer without latents, by which plans compare shapes.

    `typical` holds the token counts (prompt, generated) of a manifest's `typical_answer`.
    """
    return FlopCounter(shape).of_answer(None, typical["prompt"], typical["generated"])


def _emulation(d: int, below: int) -> int:
    """Return the FLOPs of a thought emulator at one layer, without its blocks, with `below` layers under it.

    They are those of its network (2d to 4d to d), LSTM cell, key, query and attention over the layers below,
    and output (2d to d).
    """
    attention = 2 * d * d + 4 * d * below if below else 0
    return (24 + 16 + 2 + 4) * d * d + attention


def _ends(layout: Layout, d: int, layer: LayerShape) -> int:
    """Return the sum of inputs and outputs over all matrices of a layer.

    A fused matrix, such as q, k and v in one, counts once, since it has one adapter.
    """
    heads = layer.query_heads * layer.head_dim
    groups = layer.kv_heads * layer.head_dim
    outputs = {"query": heads, "key": groups, "value": groups, "neuron": layer.ffn}
    into = sum(d + sum(outputs[part] for part in each.makes) for each in layout.projections)
    return into + heads + layer.ffn + 2 * d
