"""Hard-concrete gates: their distribution against draws, their training against heads made on purpose."""

import copy
import itertools
import math

import pytest
import torch
from ablations import reading
from plain import by_unit
from pydantic import ValidationError

from copra.data.batch import collate
from copra.data.sequences import Sample
from copra.models.anatomy import attention_output, blocks
from copra.pruning.scoring import gates as module
from copra.pruning.scoring.gates import (
    closed_probability,
    deterministic,
    endless_batches,
    gate_scores,
    gated,
    sampled,
)
from copra.pruning.scoring.objective import example_losses
from copra.schema.metrics import SCORED_AS
from copra.schema.scoring import Gates

NO_PARTS = torch.nn.ModuleDict()
QUICK = {"steps": 150, "warmup_steps": 50}
ALPHAS = torch.tensor([-3.0, -0.8, 0.0, 1.0, 2.0, 4.0])


@pytest.fixture
def llama(make_model):
    """Four query heads in two KV groups, three layers."""
    return make_model("llama")


def written_by(model):
    """Batches without end of what the model itself writes, so that it needs its heads; labels on all but
    the first three tokens."""
    tokens = torch.randint(50, (24, 3), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for _ in range(9):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    samples = [
        Sample(str(number), row, [-100] * 3 + row[3:], first_latent=len(row), n_latents=0)
        for number, row in enumerate(tokens.tolist())
    ]

    def lay_out(items):
        return (collate(items[first : first + 8], pad=0) for first in range(0, len(items), 8))

    return endless_batches(samples, lay_out, 0)


def train(model, kind="heads", **settings):
    rows = gate_scores(model, NO_PARTS, written_by(model), None, kind, Gates(**settings))
    return by_unit(rows, SCORED_AS[kind], "gates")


def test_the_probability_of_a_closed_gate_is_the_share_of_draws():
    """And of an open one what follows from the same interval by symmetry."""
    draws = 1_000_000
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for log_alpha in ALPHAS.double():
        z = sampled(log_alpha, noise)
        assert 0 <= z.min() <= z.max() <= 1
        for edge, p in ((0.0, closed_probability(log_alpha)), (1.0, closed_probability(-log_alpha))):
            assert abs((z == edge).double().mean() - p) < 4 * math.sqrt(p * (1 - p) / draws)


def test_the_gradient_of_expected_sparsity_is_that_of_finite_differences():
    log_alpha = ALPHAS.double().requires_grad_()
    (gradient,) = torch.autograd.grad(closed_probability(log_alpha).mean(), log_alpha)
    step = 1e-6
    for index in range(len(ALPHAS)):
        shift = torch.zeros(len(ALPHAS), dtype=torch.float64)
        shift[index] = step
        high, low = (closed_probability(ALPHAS.double() + sign * shift).mean() for sign in (1, -1))
        assert gradient[index].item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-6)


def test_gates_at_rest_worked_out():
    """sigmoid(0) = 0.5, sigmoid(2) = 0.880797, sigmoid(-3) = 0.047426, stretched to -0.1 .. 1.1."""
    z = deterministic(torch.tensor([0.0, 2.0, -3.0, 4.0]))
    assert z.tolist() == pytest.approx([0.5, 1.2 * 0.880797 - 0.1, 0.0, 1.0], abs=1e-6)


def scaled_by_hand(model, factors):
    """The model with the inputs of each output projection multiplied through its weights."""
    changed = copy.deepcopy(model)
    for block, layer in zip(blocks(changed), factors, strict=True):
        weight = reading(attention_output(block))
        weight *= torch.tensor(layer, dtype=weight.dtype).repeat_interleave(len(weight) // len(layer))[
            :, None
        ]
    return changed


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_gate_multiplies_its_heads_and_the_rest_is_scaled(make_model, kind):
    model = make_model(kind)
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    gates = [[1.0, 0.5, 0.0, 1.0], [0.25, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    expected = scaled_by_hand(model, [[4 / 3, 2 / 3, 0.0, 4 / 3], gates[1], gates[2]])
    with gated(model, torch.tensor(gates)):
        found = model(tokens).logits
    assert torch.allclose(found, expected(tokens).logits)
    # Two gates: each has a KV group of two heads.
    expected = scaled_by_hand(model, [[2.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    with gated(model, torch.tensor([[1.0, 0.0], [0.5, 1.0], [1.0, 1.0]])):
        found = model(tokens).logits
    assert torch.allclose(found, expected(tokens).logits)
    assert torch.equal(model(tokens).logits, scaled_by_hand(model, [[1.0]] * 3)(tokens).logits)


@torch.no_grad()
def test_examples_have_gates_of_their_own(llama):
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    gates = torch.tensor([[[1.0, 0.5, 0.0, 1.0], [0.0, 0.0, 0.7, 1.0]]] * 3)
    with gated(llama, gates):
        together = llama(tokens).logits
    for example in range(2):
        with gated(llama, gates[:, example]):
            assert torch.allclose(llama(tokens[example : example + 1]).logits[0], together[example])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "closed"), [("heads", 0.5), ("kv_groups", 0.25)])
def test_the_budget_is_met(llama, kind, closed):
    found = train(llama, kind, target_sparsity=closed, **QUICK)
    assert len(found) == {"heads": 12, "kv_groups": 6}[kind]
    # P(z = 0) = sigmoid(1/3 ln(0.1 / 1.1) - log alpha)
    expected = [1 / (1 + math.exp(score - math.log(1 / 11) / 3)) for score in found.values()]
    assert sum(expected) / len(expected) == pytest.approx(closed, abs=0.02)


@pytest.mark.slow
def test_useless_heads_close_and_needed_ones_stay_open(llama):
    useless = [(0, 1), (1, 0), (1, 3), (2, 2)]
    with torch.no_grad():
        for layer, head in useless:
            reading(attention_output(blocks(llama)[layer]))[head * 8 : (head + 1) * 8] = 0
    found = train(llama, target_sparsity=0.3)
    lowest = sorted(found, key=found.get)
    assert sorted(lowest[:4]) == useless
    assert max(found[unit] for unit in useless) < -1 < 0 < found[lowest[4]]


@pytest.mark.slow
def test_a_group_that_is_useless_closes(llama):
    with torch.no_grad():
        reading(attention_output(blocks(llama)[1]))[16:] = 0
    found = train(llama, "kv_groups", target_sparsity=0.2, **QUICK)
    assert min(found, key=found.get) == (1, 1)


def test_gates_start_open_and_do_not_decay(llama):
    """Where attention gives nothing at all, and the sparsity loss weighs nothing, they stay as they are."""
    with torch.no_grad():
        for block in blocks(llama):
            attention_output(block).weight.zero_()
    found = train(llama, steps=1, warmup_steps=1)
    assert set(found.values()) == {2.0}


def test_the_sparsity_loss_warms_up(llama):
    def far(steps, warmup_steps):
        few, many = (
            train(llama, steps=steps, warmup_steps=warmup_steps, target_sparsity=closed)
            for closed in (0.1, 0.9)
        )
        return max(abs(few[unit] - many[unit]) for unit in few)

    assert far(1, 1) == 0 < far(6, 6) < far(6, 0)


def test_a_warm_up_longer_than_the_gates_training_is_refused():
    with pytest.raises(ValidationError, match="warmup_steps: 7 are more than the 6 steps of the gates"):
        Gates(steps=6, warmup_steps=7)


def test_the_same_settings_give_the_same_table(llama):
    first, again, other = (train(llama, steps=5, warmup_steps=0, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_model_stays_as_it_was(llama):
    state = copy.deepcopy(llama.state_dict())
    llama.lm_head.weight.requires_grad_(False)
    train(llama, steps=3, warmup_steps=0)
    assert all(torch.equal(value, state[name]) for name, value in llama.state_dict().items())
    learning = {name for name, each in llama.named_parameters() if each.requires_grad}
    assert learning == {name for name, _ in llama.named_parameters()} - {"model.embed_tokens.weight"}
    assert all(each.grad is None for each in llama.parameters())
    assert not any(each._forward_pre_hooks for each in llama.modules())


def test_latents_are_thought_through_the_same_gates(model, with_latents, no_parts, monkeypatch):
    """Each step draws its gates once, although a batch with latents takes several passes."""
    monkeypatch.setattr(module, "sampled", lambda log_alpha, noise: (noise > 0.4).double() + 0 * log_alpha)
    seen = []

    def losses(*arguments):
        seen.append(example_losses(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "example_losses", losses)
    model.eval()
    sizes = [layer.query_heads for layer in module.shape_of(model.config.to_dict()).layers]
    (batch,) = with_latents.batches(5)
    gate_scores(
        model,
        no_parts,
        itertools.repeat(batch),
        with_latents.decoding,
        "heads",
        Gates(steps=1, warmup_steps=0, seed=3),
    )
    noise = torch.rand(5, sum(sizes), generator=torch.Generator().manual_seed(3))
    for example, sample in enumerate(with_latents.samples):
        alone = []
        for gates in (noise[example] > 0.4).double().split(sizes):
            left = gates.sum().clamp(min=1)
            alone.append((gates * len(gates) / left).tolist())
        with torch.no_grad():
            changed = scaled_by_hand(model, alone)
            loss = example_losses(changed, no_parts, collate([sample], pad=0), with_latents.decoding)
        assert seen[0][example].item() == pytest.approx(loss.item(), rel=1e-6)


def test_batches_have_all_items_each_time_in_another_order():
    def lay_out(items):
        return iter([items[:2], items[2:]])

    def epochs(seed):
        found = endless_batches(range(4), lay_out, seed)
        return [next(found) + next(found) for _ in range(20)]

    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs(0))
    assert len({tuple(epoch) for epoch in epochs(0)}) > 5
    assert epochs(0) == epochs(0) != epochs(1)
