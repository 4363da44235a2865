"""A cache in blocks holds what transformers' own cache holds, and copies less."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from copra.generation.cache import BLOCK, BlockLayer, FixedLayer, growing_cache, start_with
from copra.generation.decode import decode
from copra.generation.session import DecodingSession
from helpers.decodings import HIDDEN, PAD
from helpers.devices import waits


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_what_a_layer_holds_equals_the_librarys():
    torch.manual_seed(0)
    ours, theirs = BlockLayer(), DynamicCache().layer_class_to_replicate()

    def update(rows: int, count: int) -> None:
        keys, values = draw(rows, 2, count, 4), draw(rows, 2, count, 3)
        for found, expected in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()

    update(3, 5)
    for _ in range(BLOCK):
        update(3, 1)
    for layer in (ours, theirs):
        layer.crop(-7)
    update(3, 2)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([2, 0]))
    update(2, 1)
    update(2, 2 * BLOCK)
    for layer in (ours, theirs):
        layer.crop(-2 * BLOCK)
    update(2, 3)


def test_a_token_moves_nothing_but_where_a_block_is_full():
    layer = BlockLayer()
    places = [layer.update(draw(2, 2, 1, 4), draw(2, 2, 1, 4))[0].data_ptr() for _ in range(2 * BLOCK)]
    assert len(set(places)) == 2
    assert places.count(places[0]) == BLOCK


def test_a_fixed_layer_shows_what_is_asked_of_it():
    layer = FixedLayer(max_cache_len=8)
    layer.visible = 5
    keys, values = draw(2, 2, 5, 4), draw(2, 2, 5, 3)
    found = layer.update(keys, values)
    assert torch.equal(found[0], keys)
    assert torch.equal(found[1], values)
    assert layer.get_mask_sizes(5) == (5, 0)
    layer.visible = None
    layer.crop(-2)
    more = draw(2, 2, 1, 4)
    found = layer.update(more, draw(2, 2, 1, 3))
    assert torch.equal(found[0][:, :, :4], torch.cat([keys[:, :, :3], more], dim=2))
    assert found[1].shape == (2, 2, 8, 3)
    assert layer.get_mask_sizes(1) == (8, 0)


def test_each_row_starts_with_the_prefix(make_model):
    model = make_model("copra_llama")
    prefix, cache = DynamicCache(config=model.config), growing_cache(model)
    with torch.inference_mode():
        model.base_model(input_ids=torch.tensor([[3, 1, 4]]), past_key_values=prefix, use_cache=True)
        start_with(cache, prefix, 2)
    for layer, known in zip(cache.layers, prefix.layers, strict=True):
        assert torch.equal(layer.keys, known.keys.repeat(2, 1, 1, 1))
        assert torch.equal(layer.values, known.values.repeat(2, 1, 1, 1))


def test_no_token_asks_the_device(make_model, prompts):
    """Neither with padding nor without, nor a latent."""
    model = make_model("llama")
    for chosen in (prompts, prompts[:1]):
        with torch.inference_mode():
            session = DecodingSession(model, chosen, HIDDEN, PAD)
            session.prefill()
            with waits() as found:
                logits = session.step(torch.ones(len(chosen), dtype=torch.long))
                session.step(logits.argmax(-1))
        assert found == []


@pytest.mark.slow
def test_long_answers_go_on_through_the_blocks(make_model, prompts):
    """Each row as if it were alone: masks and caches grow together."""
    model = make_model("gpt2")
    options = {"stop": -1, "pad": PAD, "max_new_tokens": 90}
    together = decode(model, prompts, HIDDEN, batch_size=8, **options)
    assert together == decode(model, prompts, HIDDEN, batch_size=1, **options)


def test_layers_that_attend_within_a_window(prompts):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=6)).double().eval()
    options = {"stop": -1, "pad": PAD, "max_new_tokens": 9}
    found = decode(model, prompts, None, batch_size=8, **options)
    for prompt, answer in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(9):
            tokens.append(
                int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            )
        assert answer.tokens == tokens[len(prompt) :]
