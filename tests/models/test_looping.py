"""A looped model is the plain model with a copy of a layer for each visit, to the last bit in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_families import CASES, make
from transformers import AutoModelForCausalLM, DynamicCache

from copra.data.batch import collate
from copra.data.sequences import Markers, TokenRow, lay_out
from copra.generation.decode import decode
from copra.methods.hidden_states import hidden_states
from copra.methods.loss_functions import cross_entropy
from copra.methods.reasoning_model import ReasoningModel
from copra.models.anatomy import blocks
from copra.models.checkpoint import load_checkpoint, save_checkpoint
from copra.models.hooks import before_blocks
from copra.models.loading import load_language_model
from copra.models.looping import loop_layers
from copra.models.shape import shape_of
from copra.models.visits import unlooped
from copra.schema.loop import Loop
from copra.schema.training import Lora
from copra.training.adapters import adapted
from copra.utils.errors import CopraError
from helpers.decodings import DECODINGS, LENGTHS, LIMIT, PAD
from helpers.kinds import KINDS
from helpers.manifests import provenance
from helpers.unrolled import source_name, unrolled

# Of three layers or more: all of them, and a block in the middle of which the first layer is no part.
ALL, BLOCK = Loop(times=2), Loop(layers=(1, 2), times=3)
VISITS = {ALL: [0, 1, 2, 0, 1, 2], BLOCK: [0, 1, 2, 1, 2, 1, 2]}
LOOPS = [pytest.param(ALL, id="all"), pytest.param(BLOCK, id="block")]
INPUT_IDS = torch.randint(1, 15, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair(any_model, loop):
    """The looped model and the plain one."""
    plain = unrolled(any_model, VISITS[loop])
    loop_layers(any_model, loop)
    return any_model, plain


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT_IDS).logits


@pytest.mark.parametrize("loop", LOOPS)
def test_logits_equal_those_of_the_plain_model(pair):
    looped, plain = pair
    assert torch.equal(logits(looped), logits(plain))
    assert looped.config.num_hidden_layers == plain.config.num_hidden_layers
    assert shape_of(looped.config.to_dict()) == shape_of(plain.config.to_dict())


@pytest.mark.parametrize("case", CASES)
def test_logits_of_every_family_equal_those_of_the_plain_model(case):
    """With windows and rotary positions in some layers only; then with caches."""
    model = make(case)
    plain, shape = unrolled(model, visits := [0, 1, 2, 1, 2, 3]), shape_of(model.config.to_dict())
    loop_layers(model, loop := Loop(layers=(1, 2), times=2))
    assert torch.equal(logits(model), logits(plain))
    assert shape_of(model.config.to_dict()) == shape_of(plain.config.to_dict()) == shape.looped(loop)
    caches = [DynamicCache(config=each.config) for each in (model, plain)]
    for first in range(0, 9, 3):
        piece = INPUT_IDS[:, first : first + 3]
        pairs = zip((model, plain), caches, strict=True)
        with torch.no_grad():
            found, expected = (each(piece, past_key_values=cache).logits for each, cache in pairs)
        assert torch.equal(found, expected)
    assert len(caches[0].layers) == len(visits)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["none", "hidden", "jacobi 2"])
def test_answers_equal_those_of_the_plain_model(pair, prompts, way):
    """Cached and padded on the left, with and without a common prefix; latents are those of a loop too."""
    looped, plain = pair
    for prefix in ((), (11, 2, 35)):
        options = {"stop": 9, "pad": PAD, "max_new_tokens": LIMIT, "prefix": prefix}
        expected = decode(plain, prompts, DECODINGS[way], batch_size=8, **options)
        for batch_size in (8, 3):
            assert decode(looped, prompts, DECODINGS[way], batch_size=batch_size, **options) == expected


@pytest.mark.parametrize("loop", LOOPS)
def test_cached_answers_equal_those_without_a_cache(pair, prompts):
    looped, _ = pair
    answers = decode(looped, prompts, None, stop=9, pad=PAD, max_new_tokens=LIMIT, batch_size=8)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = list(prompt)
        for token in answer.tokens:
            with torch.no_grad():
                found = looped(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(found.argmax()))
            assert tokens[-1] == token


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(1, 47, (length,), generator=generator).tolist() for length in LENGTHS]


def batch():
    """Three rows of unequal lengths, the steps left out."""
    markers, generator = Markers(47, 48, 49), torch.Generator().manual_seed(3)
    samples = []
    for number, (question, answer) in enumerate(((5, 2), (9, 3), (3, 1))):
        draw = torch.randint(1, 47, (question + answer,), generator=generator).tolist()
        row = TokenRow(str(number), draw[:question], [], draw[question:])
        samples.append(lay_out(row, None, 0, None, pause=markers.latent))
    return collate(samples, PAD)


def gradients(model) -> dict[str, torch.Tensor]:
    loss, _ = cross_entropy(model, batch(), hidden_states(model, batch(), "hidden"))
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_are_the_sums_over_the_copies(pair, loop):
    looped, plain = pair
    found, copies = gradients(looped), gradients(plain)
    sums = {name: torch.zeros_like(value) for name, value in found.items()}
    for name, value in copies.items():
        sums[source_name(name, VISITS[loop])] += value
    assert all(value.abs().max() > 0 for value in sums.values())
    for name, value in found.items():
        torch.testing.assert_close(value, sums[name], rtol=1e-9, atol=1e-12)


def test_a_single_pass_is_the_ordinary_model(any_model):
    expected = logits(any_model)
    loop_layers(any_model, Loop(times=1))
    assert torch.equal(logits(any_model), expected)


def test_the_weights_are_those_of_the_ordinary_model(any_model):
    before = {name: value.data_ptr() for name, value in any_model.state_dict().items()}
    parameters, modules = any_model.num_parameters(), {name for name, _ in any_model.named_modules()}
    loop_layers(any_model, BLOCK)
    assert {name: value.data_ptr() for name, value in any_model.state_dict().items()} == before
    assert any_model.num_parameters() == parameters
    assert {name for name, _ in any_model.named_modules()} == modules


@pytest.mark.parametrize("loop", LOOPS)
def test_it_is_the_ordinary_model_for_a_while(any_model, loop):
    expected, config = logits(any_model), any_model.config.to_dict()
    loop_layers(any_model, loop)
    looped = logits(any_model)
    assert not torch.allclose(looped, expected)
    with unlooped(any_model):
        assert any_model.config.to_dict() == config
        assert torch.equal(logits(any_model), expected)
        cache = DynamicCache(config=any_model.config)
        with torch.no_grad():
            any_model(INPUT_IDS, past_key_values=cache)
        assert [layer.get_seq_length() for layer in cache.layers] == [9] * 3
    assert torch.equal(logits(any_model), looped)
    with unlooped(other := unrolled(any_model, [0])):  # of an ordinary model: nothing
        assert other.config.num_hidden_layers == 1


def test_hooks_see_every_visit(any_model):
    loop_layers(any_model, BLOCK)
    seen = []
    with before_blocks(any_model, lambda index, hidden: seen.append((index, tuple(hidden.shape)))):
        logits(any_model)
    assert seen == [(index, (2, 9, 32)) for index in range(7)]
    assert len(blocks(any_model)) == 7


def test_a_copy_is_a_looped_model_of_its_own(any_model):
    loop_layers(any_model, BLOCK)
    expected, copied = logits(any_model), copy.deepcopy(any_model)
    with torch.no_grad():
        for parameter in any_model.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied), expected)
    with unlooped(copied):
        assert copied.config.num_hidden_layers == 3


def test_adapters_are_those_of_the_layers(any_model):
    """One for each layer, used in every visit, and merged into the layer's weights."""
    loop_layers(any_model, ALL)
    names = list(any_model.state_dict())
    with adapted(ReasoningModel(any_model), Lora(rank=3, alpha=6.0), (), Markers(47, 48, 49)) as groups:
        expected = logits(any_model)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in groups[0]["params"]:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        shaken = logits(any_model)
        assert not torch.allclose(shaken, expected)
    assert list(any_model.state_dict()) == names
    torch.testing.assert_close(logits(any_model), shaken, rtol=1e-9, atol=1e-9)
    with unlooped(any_model):
        plain = unrolled(any_model, VISITS[ALL])
    torch.testing.assert_close(logits(plain), shaken, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_those_of_the_ordinary_model(make_model, word_tokenizer, tmp_path, kind):
    """But for the mark in the config, by which transformers loops it; copra does as its manifest says."""
    model = make_model(kind, len(word_tokenizer), double=False)
    ordinary, shape = logits(model), shape_of(model.config.to_dict())
    save_checkpoint(tmp_path / "ordinary", model, word_tokenizer, provenance())
    loop_layers(model, BLOCK)
    looped = logits(model)
    known = provenance(decoding=replace(DECODINGS["no thought"], loop=BLOCK))
    save_checkpoint(tmp_path / "looped", model, word_tokenizer, known)
    assert torch.equal(logits(model), looped)
    name = "model.safetensors"
    assert (tmp_path / "looped" / name).read_bytes() == (tmp_path / "ordinary" / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "looped", trust_remote_code=True).eval()
    assert torch.equal(logits(loaded), looped)
    unmarked = load_language_model(tmp_path / "looped", "looped").eval()
    assert torch.equal(logits(unmarked), ordinary)
    again = load_checkpoint(tmp_path / "looped", to_answer=True)
    assert torch.equal(logits(again.model), looped)
    assert again.manifest.loop == again.decoding.loop == BLOCK
    assert (again.manifest.shape, again.shape) == (shape, shape.looped(BLOCK))
    assert torch.equal(logits(load_checkpoint(tmp_path / "looped", looped=False).model), ordinary)


def test_a_model_that_lacks_the_layers_is_refused(make_model):
    with pytest.raises(CopraError, match=r"^loop\.layers: there is no layer 3\. The model has 3 layers"):
        loop_layers(make_model("llama"), Loop(layers=(1, 3)))
