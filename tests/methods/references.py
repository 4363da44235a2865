"""Slow plain references for losses: a row at a time, no cache, no padding, no hooks, in float64."""

import copy
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from copra.data.batch import collate
from copra.data.sequences import IGNORED, Markers, Sample, TokenRow
from copra.methods.loss_functions import weighted
from copra.methods.method import Stage
from copra.methods.reasoning_model import ReasoningModel

MARKERS = Markers(start=47, latent=48, end=49)
PAD = 0


def draw_rows(
    *lengths: tuple[int, Sequence[int]], mark: int = 1, vocabulary: int = MARKERS.start
) -> list[TokenRow]:
    """Rows of random tokens: the length of the question and of each step; answers have 3 tokens."""
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> list[int]:
        return torch.randint(1, vocabulary, (n,), generator=generator).tolist()

    return [
        TokenRow(str(number), draw(question), [draw(n) for n in steps], draw(3), mark)
        for number, (question, steps) in enumerate(lengths)
    ]


def another(model: nn.Module) -> nn.Module:
    """A model of the same shape with other weights."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def through_blocks(
    body: nn.Module,
    vectors: Sequence[Tensor],
    change: Callable[[int, Tensor], Tensor] = lambda index, hidden: hidden,
) -> list[Tensor]:
    """The inputs [N, d] of all blocks of a decoder, as `change(l, input)` makes them, and the final-norm
    states. `vectors` [d] are the input embeddings.
    """
    hidden, n = torch.stack(list(vectors)), len(vectors)
    settings = {"attention_mask": torch.full((1, 1, n, n), -torch.inf, dtype=hidden.dtype).triu(1)}
    if hasattr(body, "wpe"):
        hidden, blocks, norm = hidden + body.wpe.weight[:n], body.h, body.ln_f
    else:
        blocks, norm = body.layers, body.norm
        settings["position_embeddings"] = body.rotary_emb(hidden[None], position_ids=torch.arange(n)[None])
    states = []
    for index, block in enumerate(blocks):
        states.append(change(index, hidden))
        hidden = block(states[-1][None], **settings)[0]
    return [*states, norm(hidden)]


def body_of(model: nn.Module, vectors: Sequence[Tensor]) -> Tensor:
    """Final-norm hidden states [N, d] from input embeddings [d], by the library's own forward pass."""
    inputs = torch.stack(list(vectors))[None]
    return model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]


def plain_inputs(
    model: nn.Module,
    sample: Sample,
    thought: str = "hidden",
    feed: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    iterations: int | None = None,
) -> list[Tensor]:
    """The input embedding [d] of every position. Every latent recomputes the whole prefix, or, with
    `iterations`, every iteration the whole sequence."""
    vectors = [model.get_input_embeddings().weight[token] for token in sample.tokens]
    places = [place for place, token in enumerate(sample.tokens) if token == MARKERS.latent]
    if thought == "embedding":
        return vectors
    if iterations is None:
        for place in places:
            vectors[place] = feed(body_of(model, vectors[:place])[-1])
        return vectors
    for _ in range(iterations):
        hidden = body_of(model, vectors)
        vectors = [feed(hidden[i - 1]) if i in places else vector for i, vector in enumerate(vectors)]
    return vectors


def plain_hidden(model: nn.Module, sample: Sample, *way, **settings) -> Tensor:
    """Final-norm hidden states [N, d]; see `plain_inputs`."""
    return body_of(model, plain_inputs(model, sample, *way, **settings))


def surprise(model: nn.Module, state: Tensor, token: int) -> Tensor:
    """-log p(token) after a final-norm state [d]."""
    logits = model.get_output_embeddings().weight @ state
    return logits.logsumexp(0) - logits[token]


def plain_cross_entropy(model: nn.Module, hidden: Tensor, labels: Sequence[int]) -> Tensor:
    """Sum of -log p(token) over the labels, from hidden states [N, d]."""
    loss = hidden.new_zeros(())
    for position, label in enumerate(labels):
        if label != IGNORED:
            loss = loss + surprise(model, hidden[position - 1], label)
    return loss


def layer_norm(vector: Tensor) -> Tensor:
    """A vector [d] less its mean, in units of its standard deviation."""
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


def projected(projection: nn.Module) -> Callable[[Tensor], Tensor]:
    """Linear, GELU, Linear, LayerNorm, with the weights of a projection."""
    first, _, second, norm = projection

    def feed(hidden: Tensor) -> Tensor:
        inner = first.weight @ hidden + first.bias
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        return norm.weight * layer_norm(second.weight @ inner + second.bias) + norm.bias

    return feed


def gradients(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The gradient of `value` for every parameter that has one."""
    module.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    """The same parameters have gradients, and these differ by no more than `tolerance` of their norm.

    Losses are taken in float32, which a gradient that vanishes but for rounding shows: so much is allowed
    of the largest gradient, too.
    """
    reached = {name: gradient for name, gradient in ours.items() if gradient.any()}
    expected = {name for name, gradient in plain.items() if gradient.any()}
    assert set(reached) == expected, set(reached) ^ expected
    largest = max(gradient.norm() for gradient in plain.values())
    for name in reached:
        error = (ours[name] - plain[name]).norm()
        assert error <= tolerance * plain[name].norm() + 1e-3 * tolerance * largest, name


def assert_same_loss(
    stage: Stage,
    reasoner: ReasoningModel,
    samples: Sequence[Sample],
    plain: Mapping[str, tuple[float, Tensor, int]],
    tolerance: float = 1e-6,
) -> dict[str, Tensor]:
    """A stage's terms, its loss and the gradients are those of `plain`: for each term its weight, its sum
    over the samples, and by what it is divided. Returns the gradients."""
    terms, counts, weights = (
        stage.loss(reasoner, collate(samples, PAD)),
        stage.normalizers(samples),
        stage.loss_weights(),
    )
    assert weights == {name: weight for name, (weight, _, _) in plain.items()}
    for name, (_, total, count) in plain.items():
        assert terms[name][0].item() == pytest.approx(total.item(), rel=tolerance), name
        assert int(terms[name][1]) == counts[name] == count, name
    loss = weighted(terms, weights, counts)
    expected = sum(weight * total / count for weight, total, count in plain.values())
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    ours = gradients(reasoner, loss)
    assert_same_gradients(ours, gradients(reasoner, expected), tolerance)
    return {name: gradient for name, gradient in ours.items() if gradient.any()}


def assert_supervised_loss(stage: Stage, model: nn.Module, samples: Sequence[Sample], *way: str) -> None:
    """The loss of a stage that has cross-entropy alone is the plain one, whatever the lengths of its rows."""
    sums = [plain_cross_entropy(model, plain_hidden(model, s, *way), s.labels) for s in samples]
    supervised = sum(label != IGNORED for sample in samples for label in sample.labels)
    reached = assert_same_loss(
        stage, ReasoningModel(model), samples, {"cross_entropy": (1.0, sum(sums), supervised)}
    )
    assert set(reached) == {f"model.{name}" for name, _ in model.named_parameters()}
