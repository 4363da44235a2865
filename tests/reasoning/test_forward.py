"""Coconut's forward pass against a plain one: a row at a time, no cache, no padding, in float64."""

import pytest
import torch

from copra.reasoning.forward import collate, cross_entropy, hidden_states
from copra.reasoning.layout import IGNORED, Markers, TokenRow, lay_out

MARKERS = Markers(start=47, latent=48, end=49)
PAD = 0
# Length of the question, lengths of the steps, steps left out, latents, with markers or without.
ROWS = [
    (5, (3, 2, 4), 1, 2, True),
    (2, (2,), None, 1, True),
    (9, (3, 3), 0, 0, True),
    (4, (1, 2), None, 4, True),
    (3, (2, 6), 1, 0, False),
    (7, (), None, 4, True),
]


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> list[int]:
        return torch.randint(1, 47, (n,), generator=generator).tolist()

    found = []
    for number, (question, steps, skip, latents, marked) in enumerate(ROWS):
        row = TokenRow(str(number), draw(question), [draw(n) for n in steps], draw(3))
        found.append(lay_out(row, skip, latents, MARKERS if marked else None))
    return found


# What a latent reads, how it enters, and how far float64 reaches: norms for scaling are taken in float32.
WAYS = [("hidden", "raw", 1e-10), ("hidden", "scaled", 1e-5), ("embedding", "raw", 1e-10)]


def plain_hidden(model, sample, thought: str, latent_input: str = "raw") -> torch.Tensor:
    """[N, d]: every latent recomputes the whole prefix."""
    embedding = model.get_input_embeddings().weight
    inputs = [embedding[token] for token in sample.tokens]

    def body(vectors):
        return model.base_model(inputs_embeds=torch.stack(vectors)[None], use_cache=False).last_hidden_state[
            0
        ]

    if thought == "hidden":
        for position in range(len(inputs)):
            if sample.tokens[position] == MARKERS.latent:
                inputs[position] = body(inputs[:position])[-1]
                if latent_input == "scaled":
                    mean = torch.stack([row.detach().norm() for row in embedding]).mean()
                    inputs[position] = inputs[position] / inputs[position].norm() * mean
    return body(inputs)


def plain_loss(model, sample, *way: str) -> torch.Tensor:
    """Sum of -log p(token) over the labels."""
    hidden = plain_hidden(model, sample, *way)
    loss = hidden.new_zeros(())
    for position, label in enumerate(sample.labels):
        if label != IGNORED:
            logits = model.get_output_embeddings().weight @ hidden[position - 1]
            loss = loss - (logits[label] - logits.logsumexp(0))
    return loss


def gradients(model, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("thought", "latent_input", "tolerance"), WAYS)
def test_hidden_states_and_their_gradients_equal_the_plain_ones(
    any_model, samples, thought, latent_input, tolerance
):
    batch = collate(samples, PAD)
    hidden = hidden_states(any_model, batch, thought, latent_input)
    generator = torch.Generator().manual_seed(4)
    ours, plain = hidden.new_zeros(()), hidden.new_zeros(())
    for row, sample in enumerate(samples):
        expected = plain_hidden(any_model, sample, thought, latent_input)
        found = hidden[row][batch.mask[row].bool()]
        assert torch.allclose(found, expected, rtol=0, atol=tolerance)
        direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        ours, plain = ours + (found * direction).sum(), plain + (expected * direction).sum()
    ours, plain = gradients(any_model, ours), gradients(any_model, plain)
    for name, expected in plain.items():
        assert expected.abs().max() > 0
        assert (ours[name] - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize(("thought", "latent_input", "tolerance"), WAYS)
def test_loss_and_its_gradients_equal_the_plain_ones(any_model, samples, thought, latent_input, tolerance):
    loss, supervised = cross_entropy(any_model, collate(samples, PAD), thought, latent_input)
    expected = sum(plain_loss(any_model, sample, thought, latent_input) for sample in samples)
    assert int(supervised) == sum(label != IGNORED for sample in samples for label in sample.labels)
    # The loss itself is taken in float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, plain = gradients(any_model, loss), gradients(any_model, expected)
    for name, value in plain.items():
        assert (ours[name] - value).norm() <= max(1e-6, tolerance) * value.norm(), name


def test_scaled_latents_have_the_mean_norm_of_the_embeddings(any_model, samples):
    """Seen from outside, at the latents' inputs."""
    seen = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"][:, 0]), with_kwargs=True
    )
    hidden_states(any_model, collate([samples[3]], PAD), "hidden", "scaled")
    mean = any_model.get_input_embeddings().weight.norm(dim=1).mean().item()
    assert [vector.norm().item() for vector in seen[1:]] == pytest.approx([mean] * 4, rel=1e-5)
    seen.clear()
    hidden_states(any_model, collate([samples[3]], PAD), "hidden", "raw")
    assert all(vector.norm().item() != pytest.approx(mean, rel=0.05) for vector in seen[1:])


def test_the_gradient_goes_through_the_latents(any_model, samples):
    """Cut at the latents it would be another one: what the comparison above rests on."""
    sample = samples[3]
    whole = gradients(any_model, plain_loss(any_model, sample, "hidden"))
    embedding = any_model.get_input_embeddings()
    with torch.no_grad():
        inputs = embedding.weight[sample.tokens].clone()
        hidden = hidden_states(any_model, collate([sample], PAD), "hidden")[0]
    first, n = sample.first_latent, sample.n_latents
    vectors = embedding(torch.tensor(sample.tokens))
    latent = torch.tensor([token == MARKERS.latent for token in sample.tokens])
    inputs[first : first + n] = hidden[first - 1 : first + n - 1]
    detached = torch.where(latent[:, None], inputs, vectors)
    cut = any_model.base_model(inputs_embeds=detached[None], use_cache=False).last_hidden_state[0]
    supervised = torch.tensor(sample.labels[1:]) != IGNORED
    logits = any_model.get_output_embeddings()(cut[:-1][supervised])
    targets = torch.tensor(sample.labels[1:])[supervised]
    cut_gradients = gradients(any_model, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert max((cut_gradients[name] - whole[name]).norm() / whole[name].norm() for name in whole) > 0.01


def test_latents_need_one_pass_each_and_one_more(any_model, samples):
    widths: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    batch = collate(samples, PAD)
    hidden_states(any_model, batch, "hidden")
    assert len(widths) == 4 + 1
    assert sum(widths) == batch.tokens.shape[1]
    for thought, chosen in (("embedding", samples), ("hidden", [samples[2], samples[4]])):
        widths.clear()
        batch = collate(chosen, PAD)
        hidden_states(any_model, batch, thought)
        assert widths == [batch.tokens.shape[1]]


def test_the_lm_head_reads_supervised_positions_only(any_model, samples):
    rows: list[int] = []
    any_model.get_output_embeddings().register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    _, supervised = cross_entropy(any_model, collate(samples, PAD), "hidden")
    # By hand: the kept steps and three tokens of answer of each of ROWS.
    assert rows == [(2 + 4 + 3) + 3 + (3 + 3 + 3) + 3 + (6 + 3) + 3]
    assert int(supervised) == rows[0]


def test_collate_puts_first_latents_below_each_other(samples):
    batch = collate([samples[0], samples[1]], PAD)
    q0, a0, q1, a1 = (
        samples[0].tokens[:5],
        samples[0].tokens[9:],
        samples[1].tokens[:2],
        samples[1].tokens[5:],
    )
    assert batch.first_latent == 6
    assert batch.max_latents == 2
    assert batch.ids == ["0", "1"]
    assert batch.tokens.tolist() == [
        [*q0, 47, 48, 48, 49, *a0],
        [0, 0, 0, *q1, 47, 48, 49, *a1, *[0] * 7],
    ]
    assert batch.mask.tolist() == [[1] * 18, [0] * 3 + [1] * 8 + [0] * 7]
    assert batch.positions.tolist() == [list(range(18)), [0, 0, 0, *range(8), *[7] * 7]]
    assert batch.latent.int().tolist() == [[0] * 6 + [1, 1] + [0] * 10, [0] * 6 + [1] + [0] * 11]
    assert batch.labels.tolist() == [
        [IGNORED] * 9 + a0,
        [IGNORED] * 8 + a1 + [IGNORED] * 7,
    ]


def test_collate_pads_on_the_right_where_there_are_no_latents(samples):
    batch = collate([samples[2], samples[4]], PAD)
    assert batch.mask.tolist() == [[1] * 20, [1] * 12 + [0] * 8]
    assert batch.tokens[:, 0].tolist() == [samples[2].tokens[0], samples[4].tokens[0]]
    assert not batch.latent.any()


def test_what_a_pad_is_does_not_matter(any_model, samples):
    losses = {pad: cross_entropy(any_model, collate(samples, pad), "hidden")[0].item() for pad in (0, 31)}
    assert losses[0] == losses[31]
