"""The forward pass with latents against a plain one: a row at a time, no cache, no padding, in float64."""

from dataclasses import replace

import pytest
import torch
from references import (
    MARKERS,
    PAD,
    assert_same_gradients,
    gradients,
    plain_cross_entropy,
    plain_hidden,
    projected,
)
from transformers import MistralConfig, MistralForCausalLM

from copra.data.batch import collate, width_multiple
from copra.data.sequences import IGNORED, TokenRow, lay_out
from copra.methods.hidden_states import hidden_states
from copra.methods.loss_functions import cross_entropy, weighted
from copra.models.networks import Projection
from helpers.devices import waits

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


@pytest.fixture
def projection(any_model):
    return Projection(any_model).double()


# What a latent reads, how it enters, the iterations if any, and how far float64 reaches: norms for scaling
# are taken in float32. No row has more than 4 latents.
WAYS = [
    ("hidden", "raw", None, 1e-10),
    ("hidden", "scaled", None, 1e-5),
    ("hidden", "projected", None, 1e-10),
    ("embedding", "raw", None, 1e-10),
    ("hidden", "raw", 1, 1e-10),
    ("hidden", "raw", 2, 1e-10),
    ("hidden", "projected", 3, 1e-10),
]


def ours_hidden(model, projection, batch, thought, latent_input, iterations):
    settings = {"projection": projection, "iterations": iterations or 0}
    return hidden_states(model, batch, thought, latent_input, **settings)


def plain(model, projection, sample, thought, latent_input, iterations):
    def scaled(hidden):
        mean = torch.stack([row.detach().norm() for row in model.get_input_embeddings().weight]).mean()
        return hidden / hidden.norm() * mean

    feeds = {"raw": lambda hidden: hidden, "scaled": scaled, "projected": projected(projection)}
    return plain_hidden(model, sample, thought, feeds[latent_input], iterations)


def ours_loss(model, samples, *way, pad: int = PAD):
    batch = collate(samples, pad)
    return cross_entropy(model, batch, hidden_states(model, batch, *way))


def plain_loss(model, sample):
    return plain_cross_entropy(model, plain_hidden(model, sample), sample.labels)


@pytest.mark.slow
@pytest.mark.parametrize(("thought", "latent_input", "iterations", "tolerance"), WAYS)
def test_hidden_states_and_their_gradients_equal_the_plain_ones(
    any_model, projection, samples, thought, latent_input, iterations, tolerance
):
    way = (thought, latent_input, iterations)
    batch = collate(samples, PAD)
    hidden = ours_hidden(any_model, projection, batch, *way)
    generator = torch.Generator().manual_seed(4)
    ours, sums = hidden.new_zeros(()), hidden.new_zeros(())
    for row, sample in enumerate(samples):
        expected = plain(any_model, projection, sample, *way)
        found = hidden[row][batch.mask[row].bool()]
        assert torch.allclose(found, expected, rtol=0, atol=tolerance)
        direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        ours, sums = ours + (found * direction).sum(), sums + (expected * direction).sum()
    both = torch.nn.ModuleDict({"model": any_model, "projection": projection})
    ours, expected = gradients(both, ours), gradients(both, sums)
    names = {name for name, _ in both.named_parameters() if latent_input == "projected" or "model" in name}
    assert set(expected) == names
    assert_same_gradients(ours, expected, tolerance)


@pytest.mark.parametrize(("thought", "latent_input", "iterations", "tolerance"), WAYS)
def test_loss_and_its_gradients_equal_the_plain_ones(
    any_model, projection, samples, thought, latent_input, iterations, tolerance
):
    way = (thought, latent_input, iterations)
    batch = collate(samples, PAD)
    loss, supervised = cross_entropy(any_model, batch, ours_hidden(any_model, projection, batch, *way))
    expected = sum(
        plain_cross_entropy(any_model, plain(any_model, projection, sample, *way), sample.labels)
        for sample in samples
    )
    assert int(supervised) == sum(label != IGNORED for sample in samples for label in sample.labels)
    # The loss itself is taken in float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, expected = gradients(any_model, loss), gradients(any_model, expected)
    assert_same_gradients(ours, expected, max(1e-6, tolerance))


@pytest.mark.parametrize("together", [1, 47 * 5, 47 * 29 + 46])
def test_a_loss_in_chunks_is_the_same_with_the_same_gradients(any_model, samples, monkeypatch, together):
    """Of one position each, of four or so, and of all but the last one."""
    way = ("hidden", "raw")
    expected, count = ours_loss(any_model, samples, *way)
    expected_gradients = gradients(any_model, expected)
    monkeypatch.setattr("copra.methods.loss_functions.LOGITS_TOGETHER", together)
    most, head = [], any_model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, logits: most.append(logits.numel()))
    loss, supervised = ours_loss(any_model, samples, *way)
    ours = gradients(any_model, loss)
    handle.remove()
    assert supervised == count
    assert max(most) <= max(together, head.out_features)
    # Computed once forward and once backward.
    assert len(most) % 2 == 0
    assert len(most) > 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(ours, expected_gradients, 1e-6)


@pytest.mark.parametrize("latent_input", ["raw", "projected"])
def test_as_many_iterations_as_latents_are_the_sequential_chain(any_model, projection, samples, latent_input):
    batch = collate(samples, PAD)
    chain = ours_hidden(any_model, projection, batch, "hidden", latent_input, None)
    iterated = ours_hidden(any_model, projection, batch, "hidden", latent_input, 4)
    assert torch.allclose(iterated, chain, rtol=0, atol=1e-10)
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(chain.shape, generator=generator, dtype=torch.float64)
    direction *= batch.mask[:, :, None]
    both = torch.nn.ModuleDict({"model": any_model, "projection": projection})
    ours, expected = (gradients(both, (hidden * direction).sum()) for hidden in (iterated, chain))
    assert_same_gradients(ours, expected, 1e-10)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_iterations_make_as_many_latents_exact(any_model, projection, samples, iterations):
    """Rows 3 and 5 have 4 latents each, the others fewer."""
    batch = collate(samples, PAD)
    chain = ours_hidden(any_model, projection, batch, "hidden", "raw", None)
    iterated = ours_hidden(any_model, projection, batch, "hidden", "raw", iterations)
    off = ((iterated - chain).abs().amax(2) > 1e-10) & batch.mask.bool()
    exact = batch.first_latent + iterations
    assert not off[:, :exact].any()
    assert off[3, exact:].any()
    assert off[5, exact:].any()
    # The latent after those is off already, and rows with no more latents than iterations nowhere.
    assert off[[3, 5], exact].all()
    for row, sample in enumerate(samples):
        assert off[row].any() == (sample.n_latents > iterations)


def test_iterations_need_one_pass_each_and_one_more(any_model, samples):
    widths: list[int] = []
    any_model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    batch = collate(samples, PAD)
    hidden_states(any_model, batch, "hidden", iterations=3)
    # What stands before the latents is read once, what stands after them in the last pass alone.
    before, after = batch.first_latent, batch.tokens.shape[1] - batch.first_latent - 4
    assert widths == [before + 4, 4, 4, 4 + after]


def test_projected_latents_need_their_projection(any_model, samples):
    with pytest.raises(ValueError, match="projection"):
        hidden_states(any_model, collate(samples, PAD), "hidden", "projected")


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
    whole = gradients(any_model, plain_loss(any_model, sample))
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
    _, supervised = ours_loss(any_model, samples, "hidden")
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
    losses = {pad: ours_loss(any_model, samples, "hidden", pad=pad)[0].item() for pad in (0, 31)}
    assert losses[0] == losses[31]


@pytest.mark.parametrize(("thought", "iterations"), [("hidden", 0), ("hidden", 2), ("embedding", 0)])
@pytest.mark.parametrize("chosen", [slice(6), slice(2, 5, 2), slice(1)])
def test_the_device_is_asked_nothing(make_model, samples, thought, iterations, chosen):
    """With padding on both sides, on the right alone, and without any."""
    model, batch = make_model("llama"), collate(samples[chosen], PAD)
    with waits() as found:
        loss, _ = cross_entropy(model, batch, hidden_states(model, batch, thought, iterations=iterations))
        loss.backward()
    assert found == []


@pytest.mark.parametrize("thought", ["hidden", "embedding"])
def test_wider_padding_changes_nothing(any_model, samples, thought):
    narrow, wide = collate(samples, PAD), collate(samples, PAD, multiple=8)
    assert (narrow.first_latent, narrow.tokens.shape[1]) == (10, 22)
    assert (wide.first_latent, wide.tokens.shape[1]) == (16, 32)
    assert (wide.max_latents, wide.mask.sum()) == (narrow.max_latents, narrow.mask.sum())
    states = [hidden_states(any_model, batch, thought) for batch in (narrow, wide)]
    found, expected = states[1][wide.mask.bool()], states[0][narrow.mask.bool()]
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    losses = [
        cross_entropy(any_model, batch, hidden)[0]
        for batch, hidden in zip((narrow, wide), states, strict=True)
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    plain, ours = (gradients(any_model, loss) for loss in losses)
    assert_same_gradients(ours, plain, 1e-6)


def test_teachers_are_padded_to_the_same_multiple(samples):
    taught = [replace(sample, teacher=samples[4]) for sample in samples]
    assert collate(taught, PAD, multiple=8).teacher.tokens.shape == (6, 16)


def test_only_a_gpu_gets_wider_padding():
    assert [width_multiple(torch.device(kind)) for kind in ("cpu", "cuda")] == [1, 8]


@pytest.mark.parametrize("window", [5, 40])
def test_layers_that_attend_within_a_window(samples, window):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).double().eval()
    batch = collate(samples, PAD)
    assert batch.tokens.shape[1] == 22
    hidden = hidden_states(model, batch, "hidden")
    for row, sample in enumerate(samples):
        expected = plain_hidden(model, sample)
        # Mistral's norm computes in float32.
        assert torch.allclose(hidden[row][batch.mask[row].bool()], expected, rtol=0, atol=1e-4)


def test_terms_are_weighted_and_divided_by_the_counts_of_the_whole_batch():
    """Not by those of the part at hand; a term that is only logged is left out, a count of 0 is one of 1."""
    terms = {"a": (torch.tensor(6.0), 2), "b": (torch.tensor(8.0), 1), "norm": (torch.tensor(9.0), 1)}
    assert weighted(terms, {"a": 1.0, "b": 0.25}, {"a": 4, "b": 0}).item() == 6 / 4 + 0.25 * 8
